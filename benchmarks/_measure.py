"""Measuring a command as a whole: wall time, processor time, and the peak of its anonymous memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """One run of a command: seconds, and bytes of anonymous memory at the worst moment (mapped files left out)."""

    wall: float
    cpu: float
    anonymous: int


def measure(command: Sequence[str], *, env: dict[str, str] | None = None) -> Run:
    """Run a command to its end. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.005)
    wall = time.perf_counter() - start
    if process.returncode:
        assert process.stderr is not None
        raise subprocess.CalledProcessError(process.returncode, command, stderr=process.stderr.read().decode())
    return Run(wall, _children_cpu(), peak)


_seen = 0.0


def _children_cpu() -> float:
    global _seen
    times = os.times()
    total = times.children_user + times.children_system
    spent, _seen = total - _seen, total
    return spent


def _anonymous(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon")), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def alternate(jobs: dict[str, Callable[[], Run]], repetitions: int) -> dict[str, Run]:
    """The median of each job, the jobs run in turn so that a drift of the machine meets all; one warm-up each."""
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for round_ in range(repetitions + 1):
        for name, job in jobs.items():
            done = job()
            if round_:
                runs[name].append(done)
    medians = {n: [statistics.median(column) for column in zip(*rows, strict=True)] for n, rows in runs.items()}
    return {name: Run(wall, cpu, int(peak)) for name, (wall, cpu, peak) in medians.items()}


def say(**facts: object) -> None:
    """One JSON line of results."""
    print(json.dumps(facts), flush=True)
