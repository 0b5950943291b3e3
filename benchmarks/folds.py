"""Edits that need a fact of a whole tensor first: how much memory do they take, and how many readings of it?

    python benchmarks/folds.py [--size GB] [--repetitions N]

Three plans edit one float32 tensor: values below the 20 % quantile of all magnitudes become 0 (two passes count digits,
one edits), rows are scaled to length 1 (one pass), the tensor is scaled down to a norm (one pass sums, one edits). Each
runs as a process of its own, without flushing to disk, its anonymous memory sampled every 5 ms; what a process holds
that imports JAX and this package is taken off. `passes` counts how often the tensor is read. The time of a pass is held
against reading the file once, on one thread, from the same cache; the time to start the command is taken off.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _measure import Run, alternate, measure

COLUMNS = 8192
MOST_MEMORY = 300e6
MOST_READS = 3.0


class Edit(NamedTuple):
    """An expression over `w`, and how often the tensor is read for it."""

    expr: str
    passes: int


EDITS = {
    "quantile trim, 20 %": Edit("where(abs(w) < quantile(abs(w), 0.2), 0, w)", 3),
    "row norms": Edit("w / norm(w, axis=1, keepdims=True)", 1),
    "clip by global norm": Edit("w * minimum(1, 100 / norm(w))", 2),
}
READ = """
import sys
with open(sys.argv[1], "rb", buffering=0) as file:
    block = bytearray(8 << 20)
    while file.readinto(block):
        pass
"""


def tensor(path: Path, nbytes: float) -> int:
    """Write a file with one tensor of about so many bytes, in slabs; its exact size."""
    rows = max(1, int(nbytes) // (4 * COLUMNS))
    size = rows * COLUMNS * 4
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, COLUMNS], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, rows, 512):
            random.standard_normal((min(512, rows - start), COLUMNS), np.float32).tofile(file)
    return size


def plan(folder: Path, name: str, expr: str) -> Path:
    """A plan file for an edit."""
    path = folder / f"{name.split()[0].strip(',')}.yaml"
    step = {"compute": {"from": {"w": "w"}, "expr": expr}}
    path.write_text(json.dumps({"inputs": [f"m::{folder / 'in.safetensors'}"], "transforms": [step]}))
    return path


def runs(folder: Path, repetitions: int) -> dict[str, Run]:
    """The median run of each job."""
    python = [sys.executable, "-c"]
    jobs = {
        "start": lambda: measure([*python, "import jax, brainsurgery_jax; jax.numpy.zeros(1)"]),
        "read": lambda: measure([*python, READ, str(folder / "in.safetensors")]),
        "python": lambda: measure([*python, ""]),
    }
    out = folder / "out.safetensors"
    for name, edit in EDITS.items():
        line = [sys.executable, "-m", "brainsurgery_jax", "run", str(plan(folder, name, edit.expr)), f"output={out}"]
        jobs[name] = lambda line=line: measure([*line, "--no-fsync", "--overwrite"])
    return alternate(jobs, repetitions)


def table(found: dict[str, Run], size: int) -> list[str]:
    """A row for each edit: seconds, passes, the time of a pass in readings, and memory, each with its goal."""
    read = found["read"].wall - found["python"].wall
    lines = [
        f"| {size / 1e9:.2f} GB float32; one reading {read:.2f} s | time | CPU | passes | readings a pass | memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, edit in EDITS.items():
        run = found[name]
        each = (run.wall - found["start"].wall) / edit.passes / read
        memory = run.anonymous - found["start"].anonymous
        goals = [f"{each:.1f} (goal {MOST_READS:.0f})", f"{memory / 1e6:.0f} MB (goal {MOST_MEMORY / 1e6:.0f} MB)"]
        met = [each <= MOST_READS, memory <= MOST_MEMORY]
        cells = [text if ok else f"{text} **missed**" for text, ok in zip(goals, met, strict=True)]
        lines.append(f"| {name} | {run.wall:.2f} s | {run.cpu:.2f} s | {edit.passes} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    arguments.add_argument("--size", type=float, default=2.0, help="gigabytes of the tensor")
    arguments.add_argument("--repetitions", type=int, default=3)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = tensor(Path(folder) / "in.safetensors", given.size * 1e9)
        print("\n".join(table(runs(Path(folder), given.repetitions), size)))


if __name__ == "__main__":
    main()
