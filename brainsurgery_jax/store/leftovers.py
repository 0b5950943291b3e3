"""What runs leave beside a destination: names that identify the run, and the cleanup after a run was killed.

`.NAME.brainsurgery-KIND-PID-START-HOST-BOOT`: PARTIAL is an output in the making (beside it its scratch file, with
`.scratch` at the end, and a journal, with `.journal`), PAUSED one that a run left to be continued, OLD what a file
system that cannot exchange has set aside for a moment, STALE what an output has replaced.

File systems are shared, and only its own host can see whether a run is alive. So what runs of other hosts left is never
touched; it is reported instead.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from itertools import count
from typing import NamedTuple
from zlib import crc32

from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.replacing import INPUT, Reads, Replacement, resolve
from brainsurgery_jax.store.runs import RunId, start_of, this_run

SCRATCH = ".scratch"
"""Ends the name of what an output is made from, while it is made."""

JOURNAL = ".journal"
"""Ends the name of the journal of a run, which lies beside its first output; those of the other processes of a run over
several hosts have a dot and their numbers behind it."""

PARTIAL, PAUSED, OLD, STALE = "partial", "paused", "old", "stale"

_MOST_STEM = 120  # bytes

_WORDS = {
    PARTIAL: "an unfinished output",
    PAUSED: "an output of an interrupted run",
    OLD: "a checkpoint that was set aside to be replaced",
    STALE: "a checkpoint that was replaced",
}


class Leftover(NamedTuple):
    """Something that a run left: its path and kind, and the run."""

    path: str
    kind: str
    run: RunId

    def is_foreign(self, ours: RunId) -> bool:
        """Whether a run of another host left it, of which we cannot see whether it goes on. Names without a host were
        given by versions that did not note it, and count as ours."""
        return self.run.host not in ("", ours.host)

    def is_alive(self, ours: RunId) -> bool:
        """Whether the run that made it, which is one of our host, goes on. Process ids are used again, in containers at
        once."""
        if "" not in (self.run.boot, ours.boot) and self.run.boot != ours.boot:
            return False
        try:
            with suppress(PermissionError):  # it exists, and is somebody else's
                os.kill(self.run.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        now = start_of(self.run.pid)
        return not self.run.start or not now or self.run.start == now

    def note(self, destination: str) -> Diagnostic:
        """The note that it was left alone: what it is, of which run, how old, and what to do about it."""
        with suppress(OSError):  # it may be gone by now, for its run goes on
            age = f", last changed {show_age(time.time() - os.lstat(self.path).st_mtime)} ago"
            message = f"{_WORDS[self.kind]} of process {self.run.pid} on another host, {self.run.host}, lies beside it"
            hint = f"It was left alone. When that run is over, delete it by hand: {self.path}"
            return Diagnostic("io-foreign-run", f"{destination}: {message}{age}", hint=hint, severity="note")
        return Diagnostic("io-foreign-run", f"{destination}: a run on {self.run.host} writes to it", severity="note")


def show_age(seconds: float) -> str:
    """A duration in its largest whole unit, such as `3 hours`."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (number := int(seconds // length)) > 0:
            return f"{number} {unit}{'s' * (number > 1)}"
    return "less than a minute"


def beside(destination: str, kind: str, run: RunId | None = None) -> str:
    """A path beside a destination that is a run's own (default: this process's); of stale things there may be
    several."""
    folder, name = os.path.split(destination)
    path = os.path.join(folder, f".{_stem(name)}.brainsurgery-{kind}-{run or this_run()}")
    if kind != STALE or not os.path.lexists(path):
        return path
    return next(other for n in count(2) if not os.path.lexists(other := f"{path}-{n}"))


def _stem(name: str) -> str:
    """What a name begins with that stands for the name of a destination: that name, cut where it is long, since file
    systems take 255 bytes in all."""
    raw = os.fsencode(name)
    return name if len(raw) <= _MOST_STEM else f"{raw[: _MOST_STEM - 20].decode(errors='ignore')}~{crc32(raw):08x}"


def clear(destination: str, run: RunId | None = None, keep: Collection[str] = ()) -> tuple[Leftover, ...]:
    """Removes what dead runs of this host left beside a destination, as far as possible: no other run needs it.
    Returns what runs of other hosts left, which stays. StoreError if a run of this host that is alive writes to the
    destination. `run`: the run that asks (default: this process); `keep`: paths that stay."""
    ours = run or this_run()
    recover(destination, ours)
    with os_failures(destination, "look for what earlier runs left"):
        found = _leftovers(*os.path.split(destination))
    foreign = tuple(left for left in found if left.is_foreign(ours))
    for left in found:
        if left in foreign or left.path in keep:
            continue
        if left.kind not in (STALE, PAUSED) and left.is_alive(ours):
            who = "this process" if left.run.pid == ours.pid else f"process {left.run.pid}"
            remedy = f"Wait until it is done, or stop it. If you know that nothing runs, delete {left.path}."
            raise StoreError(destination, f"is being written by {who} already", remedy=remedy)
        with suppress(OSError):
            remove(left.path)
    return foreign


def refuse_to_read(destination: str, reads: Reads) -> None:
    """Raises StoreError if a run reads what an earlier one left beside its destination: it would remove its input."""
    folder, name = os.path.split(resolve(destination))
    read = {*reads.files, *(path for files in reads.checkpoints.values() for path in files)}
    for left in _leftovers(folder, name) if read and os.path.isdir(folder) else ():
        if not left.is_foreign(this_run()) and any(
            path == left.path or path.startswith(left.path + os.sep) for path in read
        ):
            problem = f"is what an interrupted run left of {destination}, and a run that writes there removes it"
            raise StoreError(left.path, problem, remedy="Rename it first, or write to another path.", code=INPUT)


def measure_left(destination: str) -> int:
    """The bytes on disk of what dead runs of this host left beside a destination: a run that writes there removes them,
    or goes on with them, so that they are free to it."""
    folder, name = os.path.split(resolve(destination))
    ours, total = this_run(), 0
    for left in _leftovers(folder, name) if os.path.isdir(folder) else ():
        goes = left.kind in (STALE, PAUSED) or (left.kind == PARTIAL and not left.is_alive(ours))
        if goes and not left.is_foreign(ours):
            total += _size_on_disk(left.path)
    return total


def _size_on_disk(path: str) -> int:
    """The bytes that a file, or all in a folder, take on the disk; 0 for what is gone by now."""
    found = [path, *(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)]
    total = 0
    for file in found:
        with suppress(OSError):
            total += 0 if _is_folder(file) else 512 * getattr(os.lstat(file), "st_blocks", 0)
    return total


def find_journals(destination: str) -> tuple[Leftover, ...]:
    """The journals of runs of this host that write to a destination no more."""
    folder, name = os.path.split(destination)
    ours = this_run()
    found = _leftovers(folder, name) if os.path.isdir(folder) else []
    return tuple(left for left in found if left.path.endswith(JOURNAL) and not left.is_foreign(ours)
                 and (left.kind == PAUSED or not left.is_alive(ours)))  # fmt: skip


def journals_beside(journal: str) -> list[str]:
    """The journals that other processes of the same run kept."""
    folder, name = os.path.split(journal)
    others = re.compile(re.escape(name) + r"\.[0-9]+")
    return [os.path.join(folder, found) for found in sorted(os.listdir(folder)) if others.fullmatch(found)]


def recover(path: str, run: RunId | None = None) -> None:
    """Puts back what a run of this host that was killed between the two renames of a swap had set aside, at a path that
    is not there or at a folder above it. So a run can be repeated even if it reads what it replaces."""
    place, ours = resolve(path), run or this_run()
    if os.path.lexists(place):
        return
    while not os.path.lexists(os.path.dirname(place)):
        place = os.path.dirname(place)
    with suppress(OSError):  # whoever wants the path will say that it is not there
        for left in _leftovers(*os.path.split(place)):
            if left.kind == OLD and not left.is_foreign(ours) and not left.is_alive(ours):
                os.rename(left.path, place)
                return


def _leftovers(folder: str, name: str) -> list[Leftover]:
    pattern = re.compile(
        rf"\.{re.escape(_stem(name))}\.brainsurgery-({PARTIAL}|{PAUSED}|{OLD}|{STALE})-([1-9][0-9]{{0,9}})-([0-9]+)"
        rf"(?:-(\w+)-(\w*))??(?:{re.escape(SCRATCH)}|{re.escape(JOURNAL)}(?:\.[0-9]+)?|-[0-9]+)?"
    )
    found = filter(None, map(pattern.fullmatch, sorted(os.listdir(folder))))
    return [
        Leftover(os.path.join(folder, m[0]), m[1], RunId(int(m[2]), int(m[3]), m[4] or "", m[5] or "")) for m in found
    ]


# --- Removing ---------------------------------------------------------------------------------------------------------


def remove(path: str) -> None:
    """Removes a file, or a folder with everything in it, also where a folder of ours is read-only. Links are not
    followed. Raises OSError for what stays."""
    if not _is_folder(path):
        if os.path.lexists(path):
            os.remove(path)
        return
    _make_writable(path)
    for folder, inner, _ in os.walk(path):
        for name in inner:
            _make_writable(os.path.join(folder, name))
    shutil.rmtree(path)


def remove_replaced(place: str, replaced: Replacement) -> None:
    """Removes what an output has replaced, which lies at `place` now: the files that were found there, and no other.
    Raises OSError for what stays."""
    if not replaced.directory:
        os.remove(place)
        return
    for folder in ("", *reversed(replaced.folders)):
        _make_writable(os.path.join(place, folder))
    for file in replaced.files:
        os.remove(os.path.join(place, file))
    for folder in (*replaced.folders, ""):
        os.rmdir(os.path.join(place, folder))


def _make_writable(folder: str) -> None:
    if _is_folder(folder) and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        with suppress(OSError):  # not ours: the removal will say so
            os.chmod(folder, stat.S_IMODE(os.stat(folder).st_mode) | stat.S_IRWXU)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
