"""Edits that need a fact of a whole tensor first: how much memory do they take, and how many readings of it?

    python benchmarks/folds.py [--size GB] [--repetitions N]

Three plans edit one float32 tensor: values below the 20 % quantile of all magnitudes become 0 (a sample is read, one
pass counts, one edits), rows are scaled to length 1 (one pass), the tensor is scaled down to a norm (one pass sums, one
edits). Each runs as a process of its own, without flushing to disk, its anonymous memory sampled every 5 ms; what
`check` of the same plan holds is taken off.

Three more plans compute the facts alone (the quantile, the norms), and write nothing but them.

A pass is one reading of the tensor. A plain loop that only reads the file takes `read`, one that reads and writes it
`copy`, in the same round. The goal is 3 times the plain time of the same passes: a pass that only reads counts as
`read`, and the last pass of an edit, which reads and writes, as `copy`, since writing 2 GB takes ten times as long as
reading them, whoever writes. The facts alone have no such pass: they are held against readings and nothing else. The
time of a run is less that of `check`. What an edit takes for each pass in readings, with its writing, is shown without
a goal.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _measure import Run, alternate, measure

COLUMNS = 8192
MOST_MEMORY = 300e6
MOST_TIMES = 3.0


class Edit(NamedTuple):
    """An expression over `w`, how often the tensor is read for it, and whether the result is as large as `w`."""

    expr: str
    passes: int
    writes: bool = True

    def plain(self, read: float, copy: float) -> float:
        """The time of the same passes by plain loops."""
        return (self.passes - 1) * read + copy if self.writes else self.passes * read


EDITS = {
    "quantile trim, 20 %": Edit("where(abs(w) < quantile(abs(w), 0.2), 0, w)", 2),
    "row norms": Edit("w / norm(w, axis=1, keepdims=True)", 1),
    "clip by global norm": Edit("w * minimum(1, 100 / norm(w))", 2),
    "the quantile alone": Edit("quantile(abs(w), 0.2)", 1, writes=False),
    "the row norms alone": Edit("norm(w, axis=1)", 1, writes=False),
    "the global norm alone": Edit("norm(w)", 1, writes=False),
}
READ = """
import sys
block = memoryview(bytearray(8 << 20))
with open(sys.argv[1], "rb", buffering=0) as file:
    with open(sys.argv[2], "wb", buffering=0) if len(sys.argv) > 2 else open("/dev/null", "wb") as copy:
        while count := file.readinto(block):
            if len(sys.argv) > 2:
                copy.write(block[:count])
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


def plan(folder: Path, name: str, edit: Edit) -> Path:
    """A plan file for an edit."""
    path = folder / f"{name.replace(' ', '-')}.yaml"
    step = {"compute": {"from": {"w": "w"}, "expr": edit.expr, **({} if edit.writes else {"to": "fact"})}}
    steps = [step] if edit.writes else [step, {"delete": {"target": "w"}}]
    path.write_text(json.dumps({"inputs": [f"m::{folder / 'in.safetensors'}"], "transforms": steps}))
    return path


def runs(folder: Path, repetitions: int) -> dict[str, Run]:
    """The median run of each job."""
    python, command = [sys.executable, "-c"], [sys.executable, "-m", "brainsurgery_jax"]
    source, out = str(folder / "in.safetensors"), folder / "out.safetensors"
    plans = {name: str(plan(folder, name, edit)) for name, edit in EDITS.items()}
    jobs = {
        "start": lambda: measure([*command, "check", plans["row norms"], f"output={out}"]),
        "read": lambda: measure([*python, READ, source]),
        "copy": lambda: _measure_new(folder / "copy", [*python, READ, source, str(folder / "copy")]),
        "python": lambda: measure([*python, ""]),
    }
    for name, path in plans.items():
        line = [*command, "run", path, f"output={out}", "--no-fsync"]
        jobs[name] = lambda line=line: _measure_new(out, line)
    return alternate(jobs, repetitions)


def _measure_new(path: Path, line: list[str]) -> Run:
    """One run of a command that writes a file, which is removed after it."""
    try:
        return measure(line)
    finally:
        path.unlink(missing_ok=True)


def compare(found: dict[str, Run], name: str) -> tuple[float, float]:
    """The time of an edit, in that of the same passes by plain loops; and that of each pass, in readings."""
    read, copy = (found[job].wall - found["python"].wall for job in ("read", "copy"))
    own, edit = found[name].wall - found["start"].wall, EDITS[name]
    return own / edit.plain(read, copy), own / edit.passes / read


def table(found: dict[str, Run], size: int) -> list[str]:
    """A row for each edit: seconds, passes, the time of a pass in readings, and memory, each with its goal."""
    plain = ", ".join(
        f"{name} {found[name].wall - found['python'].wall:.2f} s ({found[name].cpu - found['python'].cpu:.2f} s of CPU)"
        for name in ("read", "copy")
    )
    lines = [
        f"| {size / 1e9:.2f} GB float32; {plain} | time | CPU | passes | plain times | readings a pass | copies "
        "| memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, edit in EDITS.items():
        run = found[name]
        times, each = compare(found, name)
        memory = run.anonymous - found["start"].anonymous
        goals = [f"{times:.2f} (goal {MOST_TIMES:.0f})", f"{each:.1f}", f"{run.wall / found['copy'].wall:.2f}"]
        goals.append(f"{memory / 1e6:.0f} MB (goal {MOST_MEMORY / 1e6:.0f} MB)")
        met = [times <= MOST_TIMES, True, True, memory <= MOST_MEMORY]
        cells = [text if ok else f"{text} **missed**" for text, ok in zip(goals, met, strict=True)]
        lines.append(f"| {name} | {run.wall:.2f} s | {run.cpu:.2f} s | {edit.passes} | {' | '.join(cells)} |")
    return lines


def print_table(
    description: str | None,
    runs: Callable[[Path, int], dict[str, Run]],
    table: Callable[[dict[str, Run], int], list[str]],
    *,
    gigabytes: float,
    repetitions: int,
) -> None:
    """Print the table of runs on one tensor, as the command line asks; sizes and repetitions are the defaults."""
    arguments = argparse.ArgumentParser(description=str(description).splitlines()[0])
    arguments.add_argument("--size", type=float, default=gigabytes, help="gigabytes of the tensor")
    arguments.add_argument("--repetitions", type=int, default=repetitions)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = tensor(Path(folder) / "in.safetensors", given.size * 1e9)
        print("\n".join(table(runs(Path(folder), given.repetitions), size)))


if __name__ == "__main__":
    print_table(__doc__, runs, table, gigabytes=2.0, repetitions=3)
