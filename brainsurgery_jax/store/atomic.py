"""Outputs appear whole or not at all: staged beside their destination, then renamed into place. All renames are here.

A run that is killed leaves only `.NAME.brainsurgery-partial-PID-START`, and beside it perhaps the same name with
`.scratch` at its end; the next run to that destination removes them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.failures import os_failures, remedy_for
from brainsurgery_jax.store.folder import holds_checkpoint
from brainsurgery_jax.store.sizes import show_size

SCRATCH = ".scratch"
"""Ends the name of what an output is made from, while it is made."""

_NOREPLACE, _EXCHANGE = 1, 2  # flags of renameat2
_AT_FDCWD = -100


class Staged(NamedTuple):
    """An output on its way: where it is written, where it will appear, and whether it may replace what is there."""

    staging: str
    destination: str
    overwrite: bool = False


def stage(destination: str, *, overwrite: bool = False) -> Staged:
    """A free staging path beside the destination, whose parent folders are made; removes what a dead run left there.

    Links are followed, so that an output named through a link replaces what the link points to.
    """
    path = _resolved(destination)
    folder, name = os.path.split(path)
    with os_failures(folder, "prepare the folder of the output"):
        os.makedirs(folder, exist_ok=True)
        for left, kind, pid, start in _leftovers(folder, name):
            _clear(left, kind, pid, start, path)
    return Staged(_beside(path, "partial"), path, overwrite)


def check_destination(path: str, nbytes: int, overwrite: bool) -> None:
    """Raises StoreError if an output of `nbytes` bytes could not be published at `path`. Writes nothing.

    `nbytes` is the caller's sum over all outputs of the plan on this file system.
    """
    path = _resolved(path)
    _refuse_existing(path, overwrite)
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise StoreError(path, f"cannot be created: {folder} is a file, not a folder", remedy="Choose another path.")
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = "Choose another path, or change the permissions."
        raise StoreError(path, f"cannot be created: the folder {folder} is not writable", remedy=remedy)
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        problem = (
            f"too little space: {show_size(nbytes)} to be written, {show_size(free)} free ({nbytes} and {free} bytes)"
        )
        raise StoreError(path, problem, remedy="Free some space there, or write to another disk.")


def publish(staged: Sequence[Staged], *, overwrite: bool = False, durable: bool = True) -> None:
    """Renames every output into place; each is atomic. If one fails, the error says which are published already.

    All destinations are checked before the first rename. What is replaced is swapped whole and removed at the end.
    """
    for item in staged:
        _refuse_existing(item.destination, overwrite or item.overwrite)
    replaced: list[str] = []
    try:
        for number, item in enumerate(staged):
            try:
                replaced += _into_place(item, overwrite or item.overwrite)
            except (OSError, StoreError) as error:
                raise _half_way(staged, number, error) from error
        if durable:
            for folder in sorted({os.path.dirname(item.destination) for item in staged}):
                with os_failures(folder, "flush the folder to disk (the outputs are in place)"):
                    fsync_path(folder)
    finally:
        for old in replaced:
            with os_failures(old, "remove what was replaced (the new output is in place)"):
                _remove(old)


def _half_way(staged: Sequence[Staged], number: int, error: OSError | StoreError) -> StoreError:
    if isinstance(error, StoreError):
        reason, hint = error.problem, error.remedy
    else:
        reason, hint = error.strerror or str(error), remedy_for(error)
    done = ", ".join(item.destination for item in staged[:number]) or "none"
    rest = ", ".join(item.destination for item in staged[number:])
    remedy = f"Published already: {done}. Not published: {rest}. {hint}".rstrip()
    return StoreError(staged[number].destination, f"could not be published: {reason}", remedy=remedy)


def _into_place(item: Staged, overwrite: bool) -> Iterator[str]:
    """Puts one output into place, and yields the path of what it replaced, if that is still there."""
    staging, destination, _ = item
    if not os.path.lexists(destination):
        if not _renameat2(staging, destination, _NOREPLACE):
            os.rename(staging, destination)
        return
    _refuse_existing(destination, overwrite)  # again: it may have appeared since
    both_files = os.path.isfile(destination) and os.path.isfile(staging)
    if both_files or (os.path.isdir(staging) and _is_empty(destination)):
        os.replace(staging, destination)
    elif _renameat2(staging, destination, _EXCHANGE):
        yield staging
    else:
        yield _swap_by_two_renames(staging, destination)


def _swap_by_two_renames(staging: str, destination: str) -> str:
    """For file systems that cannot exchange: for a moment nothing is there, and `stage` mends a run killed in it."""
    aside = _beside(destination, "old")
    os.rename(destination, aside)
    try:
        os.rename(staging, destination)
    except OSError:
        os.rename(aside, destination)
        raise
    return aside


def _renameat2(source: str, target: str, flag: int) -> bool:
    """Whether Linux did the rename; False where kernel, library or file system do not know it."""
    if sys.platform != "linux":
        return False
    import ctypes  # only who publishes should wait for it

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flag)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), target)


def _refuse_existing(path: str, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if os.path.ismount(path):
        remedy = f"Write to a folder inside of it, for example {os.path.join(path, 'model')}."
        raise StoreError(path, "is a mount point, which cannot be replaced as a whole", remedy=remedy)
    if _is_empty(path):
        return
    if not overwrite:
        remedy = (
            "Write to another path, or replace it as a whole: `overwrite: true` in the output of a plan, --overwrite, "
            "or `overwrite=True` in Python."
        )
        raise StoreError(path, "exists already", remedy=remedy)
    if os.path.isdir(path):
        _refuse_to_delete(path)


def _refuse_to_delete(folder: str) -> None:
    """Overwriting removes a folder with all its files, so it must look like a checkpoint, and not like a mistake."""
    remedy = "Overwriting removes the folder with everything in it. Write to another path, or to a folder inside of it."
    for place, what in ((os.getcwd(), "the current folder"), (os.path.expanduser("~"), "your home folder")):
        if os.path.commonpath([os.path.realpath(place), folder]) == folder:
            raise StoreError(folder, f"will not be overwritten: {what} is in it", remedy=remedy)
    if not holds_checkpoint(folder):
        entries = len(os.listdir(folder))
        problem = f"will not be overwritten: it holds {entries} files or folders, but none of a checkpoint"
        raise StoreError(folder, problem, remedy=remedy)


def _leftovers(folder: str, name: str) -> list[tuple[str, str, int, int]]:
    """Paths beside the destination that runs made, with their kind, and process id and start time of the run."""
    pattern = re.compile(
        rf"\.{re.escape(name)}\.brainsurgery-(partial|old)-([1-9][0-9]{{0,9}})-([0-9]+)({re.escape(SCRATCH)})?"
    )
    found = sorted(filter(None, map(pattern.fullmatch, os.listdir(folder))), key=lambda match: match[0])
    return [(os.path.join(folder, m[0]), m[1], int(m[2]), int(m[3])) for m in found]


def _clear(left: str, kind: str, pid: int, start: int, destination: str) -> None:
    if _alive(pid, start):
        who = "this process" if pid == os.getpid() else f"process {pid}"
        remedy = f"Wait until it is done, or stop it. If you know that nothing runs, delete {left}."
        raise StoreError(destination, f"is being written by {who} already", remedy=remedy)
    if kind == "old" and not os.path.lexists(destination):
        os.rename(left, destination)  # killed between the two renames of a swap
    else:
        _remove(left)


def _alive(pid: int, start: int) -> bool:
    """Whether the process runs that had this id and start time; ids are used again, in containers at once."""
    try:
        with suppress(PermissionError):  # it exists, and is somebody else's
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    now = _start_of(pid)
    return not start or not now or start == now


def _start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if the system does not tell, -1 for a dead zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return -1 if fields[0] == "Z" else int(fields[19])


def _beside(path: str, kind: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.brainsurgery-{kind}-{os.getpid()}-{_start_of(os.getpid())}")


def _resolved(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _is_empty(path: str) -> bool:
    return os.path.isdir(path) and not os.listdir(path)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


def fsync_path(path: str) -> None:
    """Flushes a file or a folder to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(path: str) -> None:
    """Flushes a file, or a folder with all that lies in it, sidecars too; links are not followed."""
    for folder, _, names in os.walk(path):
        for name in names:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                fsync_path(inner)
        fsync_path(folder)
    if os.path.isfile(path):
        fsync_path(path)
