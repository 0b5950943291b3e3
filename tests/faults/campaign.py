"""Break runs in every way that we know, and print what became of them as a table.

    python -m tests.faults.campaign --kills 200 --every 1     # or `make faults`

After each fault every destination must be the whole old or the whole new state, the source must be untouched, nothing
may hang or end with a traceback, and the same run must then succeed and leave nothing beside its outputs.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.checkpoints import write
from tests.faults.world import JOBS, OTHER, Act, After, Job, begin, digest, end, fail, faults_of, kill, prepare, tensors


class Row(NamedTuple):
    """A kind of fault: how often it was tried, what was wrong, and how many runs ended with their outputs published."""

    name: str
    tried: int
    published: int
    wrong: tuple[str, ...]


Outcome = tuple[str, After, list[str]]
"""Of one trial: where it was, what the run left, and what is wrong."""


def tally(name: str, outcomes: Iterable[Outcome]) -> Row:
    """The row of some trials."""
    found = list(outcomes)
    new = sum(set(after.states) == {"new"} for _, after, _ in found)
    return Row(name, len(found), new, tuple(f"{where}: {'; '.join(wrong)}" for where, _, wrong in found if wrong))


def try_once(job: Job, place: Path, where: str, start: Callable[[], int], kill_after: float | None = None) -> Outcome:
    """One trial in a fresh folder."""
    prepare(job, place)
    source = digest()
    after = end(start(), job, kill_after)
    return where, after, faults_of(job, after, source)


def count_calls(job: Job, place: Path) -> int:
    """The calls of a run that nothing happens to."""
    prepare(job, place)
    after = end(begin(), job)
    assert after.code == 0 and set(after.states) == {"new"}, (job, after)
    return after.calls


# --- Kinds of faults --------------------------------------------------------------------------------------------------


def at_calls(job: Job, place: Path, act: Act, every: int) -> Iterator[Outcome]:
    """Do something at every call of a run, or at one of so many."""
    for number in range(1, count_calls(job, place) + 1, every):
        yield try_once(job, place, f"call {number}", lambda n=number: begin(at=n, act=act))


def at_random(job: Job, place: Path, times: int) -> Iterator[Outcome]:
    """Kill runs at random moments."""
    random = Random(job.name)
    for _ in range(times):
        seconds = random.uniform(0, 0.5)
        yield try_once(job, place, f"after {seconds:.3f} s", begin, seconds)


def under_limits(job: Job, place: Path, limit: int, values: Iterable[int]) -> Iterator[Outcome]:
    """Run under limits of the system."""
    for value in values:
        yield try_once(job, place, f"limit {value}", lambda v=value: begin(lambda: resource.setrlimit(limit, (v, v))))


def without_rights(job: Job, place: Path) -> Iterator[Outcome]:
    """Run as somebody who may not write to the folder of the output."""
    prepare(job, place)
    source = digest()
    os.chmod(place, 0o555)
    after = end(begin(drop_capabilities), job)
    os.chmod(place, 0o755)
    yield "folder 0555", after, faults_of(job, after, source)


def drop_capabilities() -> None:
    """Make this process obey permissions though it is root's."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, none)


def source_changes(job: Job, place: Path, change: Callable[[Path], None], every: int) -> Iterator[Outcome]:
    """Change the source at calls of a run; it is put back before the run is repeated."""
    for number in range(1, count_calls(job, place) + 1, every):
        prepare(job, place)
        source, path = digest(), Path("source/model.safetensors")
        content = path.read_bytes()
        after = end(begin(at=number, act=lambda: change(path)), job)  # noqa: B023
        path.write_bytes(content)
        yield f"call {number}", after, faults_of(job, after, source)


def shorten(path: Path) -> None:
    """Cut a source off."""
    with open(path, "r+b") as file:
        file.truncate(900)


def replace_by_another(path: Path) -> None:
    """Put another source of the same size in place of one."""
    other = path.with_name("other")
    write(other, tensors(OTHER))
    os.rename(other, path)


def two_at_once(job: Job, place: Path, times: int) -> Iterator[Outcome]:
    """Two runs onto one destination: the second waits for nothing and is refused, or comes after the first."""
    for number in range(times):
        prepare(job, place)
        source = digest()
        first, second = begin(), begin()
        one, other = end(first, job), end(second, job)
        wrong = faults_of(job, other, source)
        if 0 not in (one.code, other.code) or {one.code, other.code} - {0, 3}:
            wrong.append(f"exit codes {one.code} and {other.code}: {one.err[-200:]} {other.err[-200:]}")
        yield f"round {number}", other, wrong


def on_full_disk(job: Job, place: Path, pages: Iterable[int]) -> Iterator[Outcome]:
    """Runs in small file systems with so many pages left, which root can mount."""
    for left in pages:
        place.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            return
        try:
            prepare(job, place / "run")
            ballast, source = place / "run" / "source" / "ballast", digest()
            ballast.write_bytes(bytes((os.statvfs(place).f_bavail - left) * 4096))
            after = end(begin(), job)
            ballast.unlink()
            yield f"{left} pages", after, faults_of(job, after, source)
        finally:
            os.chdir("/")
            subprocess.run(["umount", str(place)], check=True)


# --- The campaign -----------------------------------------------------------------------------------------------------


def campaign(place: Path, kills: int, every: int, jobs: Iterable[str]) -> Iterator[Row]:
    """All kinds of faults, for each job."""
    chosen = [(name, JOBS[name]) for name in jobs]
    for name, job in chosen:
        yield tally(f"kill -9 at random moments: {name}", at_random(job, place, kills))
    for name, job in chosen:
        yield tally(f"kill -9 at a system call: {name}", at_calls(job, place, kill, every))
    for number in (errno.EIO, errno.ENOSPC):
        for name, job in chosen:
            yield tally(
                f"{errno.errorcode[number]} at a system call: {name}", at_calls(job, place, fail(number), every)
            )
    for name, job in chosen:
        yield tally(f"source truncated meanwhile: {name}", source_changes(job, place, shorten, every * 3))
        yield tally(f"source replaced meanwhile: {name}", source_changes(job, place, replace_by_another, every * 3))
        sizes = (0, 100, 700, 1300, 2000, 5000, 100_000)
        yield tally(f"file size limited: {name}", under_limits(job, place, resource.RLIMIT_FSIZE, sizes))
        yield tally(f"few descriptors: {name}", under_limits(job, place, resource.RLIMIT_NOFILE, range(4, 40, 3)))
        yield tally(f"folder not writable: {name}", without_rights(job, place))
        yield tally(f"two runs at once: {name}", two_at_once(job, place, 12))
        yield tally(f"disk full: {name}", on_full_disk(job, place.with_name("disk"), (0, 1, 2)))


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| fault | tried | published anyway | lost or broken |", "|---|---:|---:|---:|"]
    lines += [f"| {r.name} | {r.tried:,} | {r.published:,} | {len(r.wrong)} |" for r in rows]
    return "\n".join(lines)


def warm_up() -> None:
    """Import what runs import, so that forked runs need not."""
    for name in ("torch", "orbax.checkpoint", "tensorstore", "brainsurgery_jax.engine.run.execute", "numpy"):
        import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description="Break runs in every way.")
    parser.add_argument("--kills", type=int, default=20, help="random kills of each job")
    parser.add_argument("--every", type=int, default=1, help="system calls of which one fails")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), help="names of jobs")
    options = parser.parse_args()
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    warm_up()
    rows: list[Row] = []
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        for row in campaign(place / "run", options.kills, options.every, options.jobs):
            rows.append(row)
            print(
                f"{row.name}: {row.tried} tried, {len(row.wrong)} wrong", *row.wrong[:5], sep="\n   ", file=sys.stderr
            )
    finally:
        os.chdir("/")
        shutil.rmtree(place)
    print(table(row for row in rows if row.tried))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
