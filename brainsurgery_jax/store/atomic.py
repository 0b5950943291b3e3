"""Outputs appear whole or not at all: staged beside their destination, then renamed into place. All renames are here.

What may be replaced is decided in `replacing`; what killed runs leave is cleared in `leftovers`.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from itertools import count
from operator import and_
from pathlib import Path
from typing import NamedTuple, Protocol

from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.store.failures import os_failures, remedy_for
from brainsurgery_jax.store.io.files import Left
from brainsurgery_jax.store.io.local import LocalPlace, WriteLog, fsync_path
from brainsurgery_jax.store.leftovers import (
    OLD,
    PARTIAL,
    SCRATCH,
    STALE,
    Leftover,
    beside,
    clear,
    remove,
    remove_replaced,
)
from brainsurgery_jax.store.replacing import Replacement, check_replacement, resolve
from brainsurgery_jax.store.runs import RunId

_NOREPLACE, _EXCHANGE = 1, 2  # flags of renameat2
_AT_FDCWD = -100


class Upload(Protocol):
    """What takes an output to a remote destination; `remote.upload` and `remote.hub_upload` have it."""

    def check(self, *, directory: bool) -> Replacement | None:
        """What the output would replace, a folder if `directory`. Raises StoreError if it may not. Changes nothing."""
        ...

    def send(self, place: LocalPlace) -> None:
        """Uploads all that does not make the output appear yet."""
        ...

    def finish(self) -> None:
        """Makes the output appear."""
        ...

    def abandon(self) -> None:
        """Removes what was uploaded, unless the output has appeared. May be called at any time, and twice."""
        ...


class Staged(NamedTuple):
    """An output on its way: where it is written, where it will appear, whether it may replace what is there, and the
    files there that are known to belong to what it replaces, what runs of other hosts left there, and the parent
    folders that were created for it, innermost first. `again`: an interrupted run wrote a part of it; `log` notes what
    is written; `upload` takes it to a remote destination."""

    staging: str
    destination: str
    overwrite: bool = False
    own: frozenset[str] = frozenset()
    foreign: tuple[Leftover, ...] = ()
    created: tuple[str, ...] = ()
    again: bool = False
    log: WriteLog | None = None
    upload: Upload | None = None

    @property
    def place(self) -> LocalPlace:
        """Where its files are written. What will replace something is hidden from others; it gets the modes of that in
        the end."""
        private = os.path.lexists(self.destination)
        return LocalPlace(self.staging, private=private, again=self.again, log=self.log)

    @property
    def scratch(self) -> LocalPlace:
        """The file that it is made from, if it is encoded from one."""
        return LocalPlace(self.staging + SCRATCH, private=True, again=self.again, log=self.log)

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """Runs of other hosts that write to the destination, or did."""
        return tuple(left.note(self.destination) for left in self.foreign)

    def abandon(self) -> None:
        """Removes what was written, here and at a remote destination, and the folders created for it that are empty
        then. May be called at any time, and twice."""
        with os_failures(self.staging, "remove the partial output"):
            for path in (self.staging, self.staging + SCRATCH):
                remove(path)
        remove_empty(self.created)
        if self.upload is not None:
            self.upload.abandon()


def stage(
    destination: str,
    *,
    overwrite: bool = False,
    own: Collection[str] = (),
    run: RunId | None = None,
    keep: Collection[str] = (),
) -> Staged:
    """A free staging path beside the destination, whose parent folders are created; removes what a dead run of this
    host left there, except the paths to `keep`. `run` is the run that writes (default: this process).

    Links are followed, so that an output named through a link replaces what the link points to.
    """
    path = resolve(destination)
    created = create_folders(os.path.dirname(path))
    foreign = clear(path, run, keep)
    return Staged(beside(path, PARTIAL, run), path, overwrite, frozenset(own), foreign, created)


def write_file(path: str, data: bytes) -> None:
    """Write a file, or replace it as a whole; if that fails or is stopped, nothing is left. Raises StoreError."""
    staged = stage(path, overwrite=True)
    try:
        with os_failures(path, "write it"):
            Path(staged.staging).write_bytes(data)
        publish([staged], durable=False)
    finally:
        staged.abandon()


def create_folders(folder: str) -> tuple[str, ...]:
    """Creates a folder and its parents where they are missing; returns those that it created, innermost first."""
    missing = [folder]
    while not os.path.lexists(missing[-1]):
        missing.append(os.path.dirname(missing[-1]))
    created: list[str] = []
    with os_failures(folder, "prepare the folder of the output"):
        try:
            for place in reversed(missing):
                with suppress(FileExistsError):  # also if another run has just created it
                    os.mkdir(place)
                    created.insert(0, place)
            os.makedirs(folder, exist_ok=True)  # the error of a file where a folder should be
        except OSError:
            remove_empty(created)
            raise
    return tuple(created)


def remove_empty(folders: Sequence[str]) -> None:
    """Removes folders, innermost first, up to one that holds something."""
    with suppress(OSError):
        for folder in folders:
            os.rmdir(folder)


def publish(staged: Sequence[Staged], *, overwrite: bool = False, durable: bool = True) -> tuple[Left, ...]:
    """Renames every output into place; each is atomic. If one fails, the error says which are published already.

    All destinations are looked at before the first rename. What is replaced is swapped whole and removed at the end;
    what of it cannot be removed is returned, and is in nobody's way.
    """
    for item in staged:
        _keep_modes(item.staging, _find_replacement(item, overwrite))
    aside: list[_Aside] = []
    try:
        for number, item in enumerate(staged):
            try:
                aside += _into_place(item, overwrite)
            except (OSError, StoreError) as error:
                raise _half_way(staged, number, error) from error
        if durable:
            for folder in sorted({os.path.dirname(item.destination) for item in staged}):
                with os_failures(folder, "flush the folder to disk (the outputs are in place)"):
                    fsync_path(folder)
    finally:
        left = tuple(found for old in aside if (found := _remove_aside(old)) is not None)
    return left


def _find_replacement(item: Staged, overwrite: bool) -> Replacement | None:
    """What an output will replace, as things are now."""
    may = overwrite or item.overwrite
    return check_replacement(item.destination, may, directory=os.path.isdir(item.staging), own=item.own)


def _half_way(staged: Sequence[Staged], number: int, error: OSError | StoreError) -> StoreError:
    if isinstance(error, StoreError):
        reason, hint = error.problem, error.remedy
    else:
        reason, hint = error.strerror or str(error), remedy_for(error)
    done = ", ".join(item.destination for item in staged[:number]) or "none"
    rest = ", ".join(item.destination for item in staged[number:])
    remedy = f"Published already: {done}. Not published: {rest}. {hint}".rstrip()
    return StoreError(staged[number].destination, f"could not be published: {reason}", remedy=remedy)


# --- Renaming ---------------------------------------------------------------------------------------------------------


class _Aside(NamedTuple):
    """What was replaced and is still there, under another name."""

    path: str
    was: Replacement


def _into_place(item: Staged, overwrite: bool) -> Iterator[_Aside]:
    """Puts one output into place, and yields what it replaced, if that is still there."""
    staging, destination = item.staging, item.destination
    was = _find_replacement(item, overwrite)  # again: something may have appeared since
    if was is None:
        if not _renameat2(staging, destination, _NOREPLACE):
            os.rename(staging, destination)
    elif not was.directory or not os.listdir(destination):
        os.replace(staging, destination)
    else:
        exchanged = _renameat2(staging, destination, _EXCHANGE)
        aside = staging if exchanged else _swap_by_two_renames(staging, destination)
        stale = beside(destination, STALE)
        try:
            os.rename(aside, stale)
        except OSError:  # it goes from where it is
            stale = aside
        yield _Aside(stale, was)


def _swap_by_two_renames(staging: str, destination: str) -> str:
    """Where the old is now. For file systems that cannot exchange: for a moment nothing is there, and `recover` mends a
    run that is killed in it."""
    aside = beside(destination, OLD)
    os.rename(destination, aside)
    try:
        os.rename(staging, destination)
    except OSError:
        os.rename(aside, destination)
        raise
    return aside


def _remove_aside(old: _Aside) -> Left | None:
    """Removes what was replaced; yields what is left of it."""
    try:
        remove_replaced(old.path, old.was)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno != errno.ENOTEMPTY:
            return Left(old.was.path, old.path, reason)
        kept = next(path for n in count(1) if not os.path.lexists(path := f"{old.was.path}.kept-{n}"))
        os.rename(old.path, kept)  # a name that no run clears
        return Left(old.was.path, kept, reason, kept=True)
    return None


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


# --- Modes ------------------------------------------------------------------------------------------------------------


def _keep_modes(staging: str, was: Replacement | None) -> None:
    """Gives an output the modes of what it replaces: of the file of the same name, else what all files there allow. So
    nobody may read the new who might not read the old."""
    if was is None:
        return
    with os_failures(was.path, "keep its mode"):
        if not was.directory:
            os.chmod(staging, _mode(was.path))
            return
        files = {name: _mode(os.path.join(was.path, name)) for name in was.files}
        folders = {name: _mode(os.path.join(was.path, name)) for name in ("", *was.folders)}
        for folder, _, names in os.walk(staging, topdown=False):
            inner = "" if folder == staging else os.path.relpath(folder, staging)
            for name in names:
                _set_mode(os.path.join(folder, name), files, os.path.join(inner, name))
            _set_mode(folder, folders, inner)


def _set_mode(path: str, modes: Mapping[str, int], name: str) -> None:
    if modes and (os.path.isdir(path) or os.stat(path).st_nlink == 1):  # a hard link is an input, too
        os.chmod(path, modes.get(name, reduce(and_, modes.values())))


def _mode(path: str) -> int:
    """The mode of a file or folder, links followed; of a link to nowhere everything is allowed."""
    return stat.S_IMODE(os.stat(path).st_mode) if os.path.exists(path) else 0o777
