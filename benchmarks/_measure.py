"""Measuring a command as a whole: wall time, processor time, and the peak of its anonymous memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """One run of a command: seconds, bytes of anonymous memory at the worst moment (mapped files left out), and the
    bytes that it read and wrote, as far as the one who ran it knows them."""

    wall: float
    cpu: float
    anonymous: int
    moved: int = 0


def measure(command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Run:
    """Run a command to its end. Raises CalledProcessError, with what it said, if it fails."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, cwd=cwd, stdout=subprocess.DEVNULL, stderr=errors
        )
        with Watch(process.pid) as watch:
            _, status, usage = os.wait4(process.pid, 0)  # its processor time, and that of its children, alone
            wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            failure = subprocess.CalledProcessError(process.returncode, command)
            failure.add_note(errors.read().decode(errors="replace"))
            raise failure
    return Run(wall, usage.ru_utime + usage.ru_stime, watch.peak)


class Watch:
    """Samples the anonymous memory of a process, and (unless it is `alone`) of its descendants, every five
    milliseconds."""

    def __init__(self, pid: int, *, alone: bool = False):
        self.peak = 0
        self._pid, self._alone, self._over = pid, alone, Event()
        self._thread = Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.peak = max(self.peak, anonymous_memory(self._pid, alone=self._alone))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def anonymous_memory(pid: int, *, alone: bool = False) -> int:
    """Bytes of anonymous memory of a process and (unless it is `alone`) its descendants; 0 for one that is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            own = next((int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon")), 0)
        if alone:
            return own
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            return own + sum(anonymous_memory(int(child)) for child in children.read().split())
    except (FileNotFoundError, ProcessLookupError):
        return 0


def touch_memory(nbytes: int) -> None:
    """Touch memory, and give it back.

    On a virtual machine, memory that was freed is given back to the host, and the next to touch it pays for it anew,
    several seconds for a few gigabytes. Touching it first takes that out of every measurement alike.
    """
    touched = np.empty(nbytes, np.uint8)
    touched[:: 1 << 12] = 1


def forget(path: Path) -> None:
    """Take the pages of a file out of the page cache, so that the next to read it waits for the disk.

    Pages that are not written yet cannot be dropped, nor those that a process has mapped.
    """
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def alternate(jobs: Mapping[str, Callable[[], Run]], repetitions: int) -> dict[str, Run]:
    """The median of each job, the jobs run in turn so that a drift of the machine meets all; one warm-up each."""
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for round_ in range(repetitions + 1):
        for name, job in jobs.items():
            done = job()
            if round_:
                runs[name].append(done)
    return {name: Run(*map(statistics.median, zip(*rows, strict=True))) for name, rows in runs.items()}


def say(**facts: object) -> None:
    """One JSON line of results."""
    print(json.dumps(facts), flush=True)
