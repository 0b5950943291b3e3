"""The protocol: ways in which a run may end badly, each with what must be at its destination then.

    python -m tests.faults.protocol

In every case the destination must be safe: the whole old or the whole new state, the source untouched. Where the run
can be repeated, that must succeed. Cases from `refused` on never begin to write.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.campaign import (
    count_calls,
    drop_capabilities,
    replace_by_another,
    shorten,
    source_changes,
    try_once,
    two_at_once,
    warm_up,
)
from tests.faults.world import JOBS, Act, begin, digest, end, fail, faults_of, kill, prepare

Case = Callable[[Path], list[str]]
"""Tries a case in a folder, and returns what is wrong."""


def at(part: float, job: str, act: Act) -> Case:
    """Something happens when a part of the calls of a run is done."""

    def case(place: Path) -> list[str]:
        number = int(count_calls(JOBS[job], place) * part)
        return try_once(JOBS[job], place, "", lambda: begin(at=number, act=act))[2]

    return case


def limited(limit: int, value: int, job: str) -> Case:
    """A limit of the system."""

    def case(place: Path) -> list[str]:
        return try_once(JOBS[job], place, "", lambda: begin(lambda: resource.setrlimit(limit, (value, value))))[2]

    return case


def refused(job: str, change: Act) -> Case:
    """Something is wrong from the start: the run is refused, and all files stay as they are."""

    def case(place: Path) -> list[str]:
        prepare(JOBS[job], place)
        change()
        before, stamp = sorted(map(str, Path().rglob("*"))), digest()
        after = end(begin(), JOBS[job])
        wrong = [] if after.code in (1, 3) else [f"exit code {after.code}: {after.err}"]
        if sorted(map(str, Path().rglob("*"))) != before or digest() != stamp:
            wrong.append("files were changed")
        return wrong

    return case


def changing(change: Callable[[Path], None], job: str) -> Case:
    """The source changes while it is read."""

    def case(place: Path) -> list[str]:
        calls = count_calls(JOBS[job], place)
        return [text for _, _, wrong in source_changes(JOBS[job], place, change, calls // 3) for text in wrong]

    return case


def both_at_once(place: Path) -> list[str]:
    """Two runs onto one destination."""
    return [text for _, _, wrong in two_at_once(JOBS["one file, overwriting"], place, 4) for text in wrong]


def folder_not_writable(place: Path) -> list[str]:
    """The folder of the destination is read-only."""
    job = JOBS["one file, new"]
    prepare(job, place)
    source = digest()
    os.chmod(place, 0o555)
    after = end(begin(drop_capabilities), job)
    os.chmod(place, 0o755)
    return faults_of(job, after, source)


def stop(number: signal.Signals) -> Act:
    """A signal to the run itself."""
    return lambda: os.kill(os.getpid(), number)


def _foreign() -> None:
    Path("out/.git").mkdir()
    Path("out/.git/HEAD").write_text("ref")


def _onto_source() -> None:
    plan = Path("plan.yaml")
    plan.write_text(plan.read_text().replace("path: out", "path: ."))


def _failing_assert() -> None:
    plan = Path("plan.yaml")
    wrong = "transforms: [{assert: {dtype: {of: w0, is: int8}}}, "
    plan.write_text(plan.read_text().replace("transforms: [", wrong))


CASES: dict[str, Case] = {
    "killed while a new file is written": at(0.6, "one file, new", kill),
    "killed while a file is to be replaced": at(0.6, "one file, overwriting", kill),
    "killed late, new file": at(0.95, "one file, new", kill),
    "killed late, file replaced": at(0.95, "one file, overwriting", kill),
    "killed while shards are written": at(0.6, "shards, new", kill),
    "killed late, shards replaced": at(0.95, "shards, overwriting", kill),
    "killed between two outputs": at(0.9, "two outputs, overwriting", kill),
    "killed while a torch file is written": at(0.8, "torch, overwriting", kill),
    "killed while orbax writes": at(0.8, "orbax, overwriting", kill),
    "disk fault (EIO) while writing": at(0.7, "one file, overwriting", fail(errno.EIO)),
    "disk fault (EIO) while publishing": at(0.9, "shards, overwriting", fail(errno.EIO)),
    "disk full (ENOSPC) while writing": at(0.7, "shards, overwriting", fail(errno.ENOSPC)),
    "disk full (ENOSPC), torch": at(0.8, "torch, overwriting", fail(errno.ENOSPC)),
    "file larger than allowed": limited(resource.RLIMIT_FSIZE, 700, "one file, overwriting"),
    "few descriptors": limited(resource.RLIMIT_NOFILE, 12, "shards, overwriting"),
    "Ctrl-C": at(0.7, "one file, overwriting", stop(signal.SIGINT)),
    "SIGTERM": at(0.7, "shards, overwriting", stop(signal.SIGTERM)),
    "source truncated meanwhile": changing(shorten, "one file, overwriting"),
    "source replaced meanwhile": changing(replace_by_another, "one file, overwriting"),
    "two runs onto one destination": both_at_once,
    "destination in a read-only folder": folder_not_writable,
    "refused: a folder that holds other files": refused("shards, overwriting", _foreign),
    "refused: a folder that holds the source": refused("shards, new", _onto_source),
    "refused: a FIFO at the destination": refused("one file, new", lambda: os.mkfifo("out.safetensors")),
    "refused: an assert that does not hold": refused("one file, overwriting", _failing_assert),
}


def main() -> int:
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    warm_up()
    place, bad, began = Path(tempfile.mkdtemp(prefix="faults-")), 0, time.monotonic()
    try:
        print("| case | destination safe |", "|---|---|", sep="\n")
        for name, case in CASES.items():
            wrong = case(place / "run")
            bad += bool(wrong)
            print(f"| {name} | {'; '.join(wrong) or 'yes'} |", flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(place)
    print(f"\n{len(CASES) - bad} of {len(CASES)}", file=sys.stderr)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
