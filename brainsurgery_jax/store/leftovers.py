"""What runs leave beside a destination: the names that tell whose it is, and what becomes of it after a run was killed.

`.NAME.brainsurgery-KIND-PID-START`: PARTIAL is an output in the making (and its scratch file, with `.scratch` at the
end), OLD what a file system that cannot exchange has set aside for a moment, STALE what an output has replaced.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.replacing import Replacement, resolved

SCRATCH = ".scratch"
"""Ends the name of what an output is made from, while it is made."""

PARTIAL, OLD, STALE = "partial", "old", "stale"


class Leftover(NamedTuple):
    """Something that a run left: its path and kind, and process id and start time of the run."""

    path: str
    kind: str
    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """Whether the run that made it goes on. Process ids are used again, in containers at once."""
        try:
            with suppress(PermissionError):  # it exists, and is somebody else's
                os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        now = _start_of(self.pid)
        return not self.start or not now or self.start == now


def beside(destination: str, kind: str) -> str:
    """A path beside a destination that is this process's own; of stale things there may be several."""
    folder, name = os.path.split(destination)
    path = os.path.join(folder, f".{name}.brainsurgery-{kind}-{os.getpid()}-{_start_of(os.getpid())}")
    if kind != STALE or not os.path.lexists(path):
        return path
    return next(other for n in count(2) if not os.path.lexists(other := f"{path}-{n}"))


def clear(destination: str) -> None:
    """Removes what dead runs left beside a destination, as far as that is possible: it is in nobody's way. StoreError
    if a run that is alive writes to the destination."""
    recover(destination)
    with os_failures(destination, "look for what earlier runs left"):
        found = _leftovers(*os.path.split(destination))
    for left in found:
        if left.kind != STALE and left.alive:
            who = "this process" if left.pid == os.getpid() else f"process {left.pid}"
            remedy = f"Wait until it is done, or stop it. If you know that nothing runs, delete {left.path}."
            raise StoreError(destination, f"is being written by {who} already", remedy=remedy)
        with suppress(OSError):
            remove(left.path)


def recover(path: str) -> None:
    """Puts back what a run that was killed between the two renames of a swap had set aside, at a path that is not there
    or at a folder above it. So a run can be repeated even if it reads what it replaces."""
    place = resolved(path)
    if os.path.lexists(place):
        return
    while not os.path.lexists(os.path.dirname(place)):
        place = os.path.dirname(place)
    with suppress(OSError):  # whoever wants the path will say that it is not there
        for left in _leftovers(*os.path.split(place)):
            if left.kind == OLD and not left.alive:
                os.rename(left.path, place)
                return


def _leftovers(folder: str, name: str) -> list[Leftover]:
    pattern = re.compile(
        rf"\.{re.escape(name)}\.brainsurgery-({PARTIAL}|{OLD}|{STALE})-([1-9][0-9]{{0,9}})-([0-9]+)"
        rf"(?:{re.escape(SCRATCH)}|-[0-9]+)?"
    )
    found = filter(None, map(pattern.fullmatch, sorted(os.listdir(folder))))
    return [Leftover(os.path.join(folder, m[0]), m[1], int(m[2]), int(m[3])) for m in found]


def _start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if the system does not tell, -1 for a dead zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return -1 if fields[0] == "Z" else int(fields[19])


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
