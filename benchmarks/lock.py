"""What does a lock cost? Runs with and without `--lock`, in turn, each a process of its own.

    python benchmarks/lock.py [--size GB] [--repetitions N]

The goals: time and memory at most 1.15 times those without a lock; for jobs that only copy, the time of reading the
file once more. Wall time, processor time and anonymous memory are medians, and the ratios are of medians. `resume` is
the same job with a journal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from _measure import Run, alternate, measure, touch_memory
from folds import READ, print_table

JOBS = {
    "copy": {"move": {"from": "w", "to": "v"}},
    "scale": {"scale_": {"target": "w", "by": 2}},
    "cast": {"cast_": {"target": "w", "to": "bfloat16"}},
    "transpose": {"transpose": {"from": "w", "to": "t"}},
}
MODES = {"plain": (), "lock": ("--lock",), "resume": ("--resume",)}


def runs(folder: Path, repetitions: int) -> dict[str, Run]:
    """The median run of each job in each mode, and of reading the file."""
    source, out = folder / "in.safetensors", folder / "out.safetensors"
    jobs = {"read": lambda: measure([sys.executable, "-c", READ, str(source)])}
    for name, step in JOBS.items():
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps({"inputs": [str(source)], "transforms": [step], "output": str(out)}))
        for mode, options in MODES.items():
            line = [sys.executable, "-m", "brainsurgery_jax", str(path), "--no-fsync", "--overwrite", *options]
            jobs[f"{name} {mode}"] = lambda line=line: _measure_warm(line, 2 * source.stat().st_size)
    return alternate(jobs, repetitions)


def _measure_warm(line: list[str], nbytes: int) -> Run:
    """One run, with the memory at hand that its output and the one that it replaces take in the page cache."""
    touch_memory(nbytes)
    return measure(line)


def table(found: dict[str, Run], size: int) -> list[str]:
    """A row for each job and mode."""
    read = found["read"]
    lines = [
        f"| {size / 1e9:.2f} GB; one reading {read.wall:.2f} s, CPU {read.cpu:.2f} s | time | CPU | memory |",
        "| --- | --- | --- | --- |",
    ]
    for name in JOBS:
        plain = found[f"{name} plain"]
        for mode in MODES:
            run = found[f"{name} {mode}"]
            cells = [_cell(run.wall, plain.wall, "s"), _cell(run.cpu, plain.cpu, "s")]
            memory = _cell(run.anonymous / 1e6, plain.anonymous / 1e6, "MB")
            lines.append(f"| {name}, {mode} | {' | '.join([*cells, memory])} |")
    return lines


def _cell(value: float, plain: float, unit: str) -> str:
    ratio = value / plain
    return f"{value:.2f} {unit}" if ratio == 1 else f"{value:.2f} {unit} ({ratio:.2f})"


if __name__ == "__main__":
    print_table(__doc__, runs, table, gigabytes=1.0, repetitions=5)
