"""What an output may take the place of. One decision, which `check`, `explain` and `run` read, and which `publish`
takes once more before it renames: a destination that holds anything but a checkpoint is refused, and so nothing else
is ever removed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError, worded
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import is_weights, suffix_of
from brainsurgery_jax.store.parts import FolderParts, parts_of
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.wording import few

# Codes of what is refused with `overwrite`, too.
KIND = "io-output-kind"
PLACE = "io-output-place"
FOREIGN = "io-output-foreign"
INPUT = "io-output-input"

_OCTAL = re.compile(rb"\\([0-7]{3})")  # how mountinfo spells spaces
_ELSEWHERE = "Write to another path."


class Reads(NamedTuple):
    """What a run reads: `checkpoints` by their real paths, with their files (links among them as they are), and other
    `files` (plans, ops, configs)."""

    checkpoints: Mapping[str, tuple[str, ...]] = {}
    files: tuple[str, ...] = ()


NOTHING = Reads()


class Replacement(NamedTuple):
    """What stands at a destination and goes when an output takes its place: the file itself (then `files` is its name),
    or the `files` and `folders` of a checkpoint as paths relative to its folder. `own`: those that an input that is
    edited in place is read from."""

    path: str
    directory: bool
    files: tuple[str, ...]
    folders: tuple[str, ...]
    nbytes: int
    own: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """What goes, by the names at the top."""
        inner = dict.fromkeys(
            f"{path.partition(os.sep)[0]}/" for path in (*self.folders, *self.files) if os.sep in path
        )
        return (*(path for path in self.files if os.sep not in path), *inner)

    def __str__(self) -> str:
        number = len(self.files)
        return f"{number:,} file{'' if number == 1 else 's'}, {show_size(self.nbytes)}: {few(self.names)}"


class ProtectedPlaces(NamedTuple):
    """Places that no output may replace: mount points, home folders, the current folder."""

    mounts: frozenset[str]
    homes: tuple[str, ...]
    current: str


def list_protected_places() -> ProtectedPlaces:
    """The places of this process."""
    homes = {os.path.realpath(os.path.expanduser(home)) for home in ("~", f"~{_user()}")}
    try:
        current = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was removed
        current = ""
    return ProtectedPlaces(_mounts(), tuple(sorted(homes)), current)


def resolve(path: str) -> str:
    """The place that a path means: `~` is the home folder, and links are followed."""
    return os.path.realpath(os.path.expanduser(path))


def check_destination(
    path: str, nbytes: int, overwrite: bool, *, directory: bool, reads: Reads = NOTHING, left: int = 0
) -> Replacement | None:
    """What an output of `nbytes` bytes would replace at `path`; None if nothing is there. Raises StoreError if it could
    not be published. Writes nothing.

    `nbytes` is the caller's sum over all outputs of the plan on this file system, `left` that of what interrupted runs
    left beside them: the run removes that, or goes on with it.
    """
    found = check_replacement(path, overwrite, directory=directory, reads=reads)
    place = resolve(path)
    folder = os.path.dirname(place)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise StoreError(place, f"cannot be created: {folder} is a file, not a folder", remedy="Choose another path.")
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = "Choose another path, or change the permissions."
        raise StoreError(place, f"cannot be created: the folder {folder} is not writable", remedy=remedy)
    _refuse_sticky(place, folder)
    free = shutil.disk_usage(folder).free + left
    if nbytes > free:
        problem = (
            f"too little space: {show_size(nbytes)} to be written, {show_size(free)} free ({nbytes} and {free} bytes)"
        )
        raise StoreError(place, problem, remedy="Free some space there, or write to another disk.")
    return found


def _refuse_sticky(place: str, folder: str) -> None:
    """Raises StoreError for what another user owns in a folder such as `/tmp`, where only owners may rename."""
    if not hasattr(os, "geteuid") or not os.path.lexists(place):
        return
    user, around = os.geteuid(), os.stat(folder)
    if around.st_mode & stat.S_ISVTX and user not in (0, around.st_uid, os.lstat(place).st_uid):
        problem = f"cannot be replaced: it belongs to another user, and in {folder} only owners may replace files"
        raise StoreError(place, problem, remedy=_ELSEWHERE)


def check_replacement(
    path: str, overwrite: bool, *, directory: bool, reads: Reads = NOTHING, own: frozenset[str] = frozenset()
) -> Replacement | None:
    """What an output would replace at `path`; None if nothing is there. StoreError if it may not, or not unasked."""
    found = replacement(path, list_protected_places(), directory=directory, reads=reads, own=own)
    if found is None or not found.files or overwrite:
        return found
    remedy = (
        "Write to another path, or replace it as a whole: `overwrite: true` in the output of a plan, or "
        f"{worded(shell='`--overwrite`', python='`overwrite=True`')}."
    )
    raise StoreError(found.path, f"exists already{f': {found}' if found.directory else ''}", remedy=remedy)


def replacement(
    path: str,
    place_of: ProtectedPlaces,
    *,
    directory: bool,
    reads: Reads = NOTHING,
    own: frozenset[str] = frozenset(),
) -> Replacement | None:
    """What an output would replace at `path`, a folder if `directory`; None if nothing is there.

    `reads` is what the run reads, `own` the files at `path` that are known to be read by an edit in place.
    Raises StoreError, whatever the user allows, for what is neither a file nor a folder; for a root, a mount point, a
    home, the current folder and what holds one; for what holds, or lies in, an input of the run without being just
    that; and for a folder that holds anything but a checkpoint.
    """
    place = resolve(path)
    with os_failures(place, "look at the destination"):
        status = os.lstat(place) if os.path.lexists(place) else None
    if status is not None:
        _refuse_kind(place, status, directory=directory)
        _refuse_places(place, place_of, status)
    own |= _own_files(place, reads, directory=directory)
    if status is None:
        return None
    if stat.S_ISREG(status.st_mode):
        return Replacement(place, False, (os.path.basename(place),), (), status.st_size, own)
    parts = parts_of(place, own)
    if parts.foreign or (parts.files and not parts.whole):
        raise _foreign(place, parts)
    if (mount := next((p for p in parts.folders if os.path.ismount(os.path.join(place, p))), None)) is not None:
        raise _is_place(place, f"{os.path.join(place, mount)}, which is in it, is a mount point")
    _refuse_linked(place, parts, reads)
    size = sum(os.lstat(os.path.join(place, name)).st_size for name in parts.files)
    return Replacement(place, True, parts.files, parts.folders, size, own)


def _refuse_kind(place: str, status: os.stat_result, *, directory: bool) -> None:
    kinds = {stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
    found = next((text for is_kind, text in kinds.items() if is_kind(status.st_mode)), None)
    if found is not None:
        raise StoreError(place, f"is {found}, which no output replaces", remedy=_ELSEWHERE, code=KIND)
    if directory and stat.S_ISREG(status.st_mode):
        remedy = "Write to another path, or move the file away."
        raise StoreError(place, "is a file, and the output is a folder", remedy=remedy, code=KIND)
    if not directory and stat.S_ISDIR(status.st_mode):
        remedy = f"Write to {os.path.join(place, os.path.basename(place))}, or to another path."
        raise StoreError(place, "is a folder, and the output is a file", remedy=remedy, code=KIND)


# --- Places -----------------------------------------------------------------------------------------------------------


def _refuse_places(place: str, known: ProtectedPlaces, status: os.stat_result) -> None:
    if place == os.path.dirname(place):
        raise _is_place(place, "it is the root of the file system")
    if place in known.mounts or os.path.ismount(place):
        raise _is_place(place, "it is a mount point")
    if (inner := next((m for m in sorted(known.mounts) if _lies_in(m, place)), None)) is not None:
        raise _is_place(place, f"{inner}, which is in it, is a mount point")
    if not stat.S_ISDIR(status.st_mode):
        return
    if _lies_in(known.current, place):
        raise _is_place(place, f"{'it is' if known.current == place else 'it holds'} the current folder")
    for home in known.homes:
        if _lies_in(home, place):
            raise _is_place(place, "it is a home folder" if home == place else f"the home folder {home} is in it")


def _is_place(place: str, why: str) -> StoreError:
    inner = os.path.join(place, "model")
    free = os.path.isdir(place) and not os.path.lexists(inner)
    remedy = f"Write to a folder inside of it, for example {inner}." if free else _ELSEWHERE
    return StoreError(place, f"cannot be replaced as a whole: {why}", remedy=remedy, code=PLACE)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _user() -> str:
    """The name of the user that this process runs as; empty if the system has none."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return ""


def _mounts() -> frozenset[str]:
    """All mount points that Linux tells of, binds within a file system too; elsewhere none."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return frozenset()
    return frozenset(os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), line.split()[4])) for line in lines)


# --- Inputs -----------------------------------------------------------------------------------------------------------


def _own_files(place: str, reads: Reads, *, directory: bool) -> frozenset[str]:
    """The files at a destination of the inputs that are edited in place. StoreError for any other input there."""
    own: set[str] = set()
    for checkpoint, files in reads.checkpoints.items():
        within = [name for file in files if (name := _within(place, file)) is not None]
        if files and (_same(checkpoint, place) or (within and _is_all(place, within, files))):
            own |= set(within)
        elif within:
            raise _input_error(place, within[0], f"a file of the checkpoint {checkpoint}", directory=directory)
        elif files:
            _refuse_inside(place, checkpoint, files, directory=directory)
    for file in reads.files:
        if (name := _within(place, file)) is not None:
            raise _input_error(place, name, file, directory=directory)
    return frozenset(own)


def _input_error(place: str, name: str, what: str, *, directory: bool) -> StoreError:
    holds = f"it holds {name}" if directory else "it is"
    shown = f"{holds}, {what}," if directory else f"{holds} {what},"
    remedy = "Write to another folder."
    return StoreError(place, f"cannot be written: {shown} which this run reads", remedy=remedy, code=INPUT)


def _is_all(place: str, within: Collection[str], files: Collection[str]) -> bool:
    """Whether an input's files are the whole checkpoint at a destination: all weights of a folder, or the one file."""
    if len(within) != len(files) or any(os.sep in name for name in within):
        return False
    return not os.path.isdir(place) or {n for n in os.listdir(place) if is_weights(n)} <= set(within)


def _refuse_inside(place: str, checkpoint: str, files: Collection[str], *, directory: bool) -> None:
    """StoreError for a destination in the folder of an input that would become part of what is read there. In no folder
    numpy's files are."""
    if checkpoint == place or not _lies_in(place, checkpoint) or suffix_of(place) in (".npz", ".npy"):
        return
    first = os.path.relpath(place, checkpoint).partition(os.sep)[0]
    among = not directory and os.path.dirname(place) == checkpoint
    own = [os.path.relpath(file, checkpoint) for file in files if _lies_in(file, checkpoint)]
    parts = parts_of(checkpoint, own)
    if among or parts.tree or first in parts.folders:
        why = f"it would lie among the files of the checkpoint {checkpoint}, which this run reads"
        raise StoreError(place, f"cannot be written: {why}", remedy="Write to a path outside of it.", code=INPUT)


def _refuse_linked(place: str, parts: FolderParts, reads: Reads) -> None:
    """StoreError if an input is one of the files that would go, or lies in one of the folders, by another path: a hard
    link, or a mount of that folder."""
    goes = ((_identity(os.path.join(place, path)), path) for path in (*parts.files, *parts.folders))
    gone = {identity: path for identity, path in goes if identity is not None}
    inputs = [(file, f"a file of the checkpoint {c}") for c, files in reads.checkpoints.items() for file in files]
    for file, what in (*inputs, *((file, file) for file in reads.files)):
        real = os.path.realpath(file)
        if _within(place, file) is None and (found := [gone[i] for i in map(_identity, _upwards(real)) if i in gone]):
            raise _input_error(place, found[0], what, directory=True)


def _within(place: str, file: str) -> str | None:
    """The path of a file relative to a folder that holds it, by whatever path; its name if it is the place itself."""
    wanted = _identity(place)
    for path in dict.fromkeys((file, os.path.realpath(file))):
        for above in _upwards(path):
            if above == place or (wanted is not None and _identity(above) == wanted):
                return os.path.basename(path) if above == path else os.path.relpath(path, above)
    return None


def _same(a: str, b: str) -> bool:
    return a == b or (_identity(a) is not None and _identity(a) == _identity(b))


def _identity(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        status = os.lstat(path)
        return status.st_dev, status.st_ino
    return None


def _upwards(path: str) -> Iterator[str]:
    """A path and all folders above it."""
    yield path
    while (above := os.path.dirname(path)) != path:
        yield above
        path = above


# --- Things that are no checkpoint's ----------------------------------------------------------------------------------


def _foreign(place: str, parts: FolderParts) -> StoreError:
    if not parts.whole:
        problem = (
            f"exists, and cannot be overwritten: it holds no checkpoint, but {few((*parts.foreign, *parts.files))}"
        )
        return StoreError(place, problem, remedy=_ELSEWHERE, code=FOREIGN)
    one = len(parts.foreign) == 1
    problem = (
        f"exists, and cannot be overwritten: it holds {few(parts.foreign)}, "
        f"which {'is' if one else 'are'} not part of the checkpoint"
    )
    remedy = (
        f"An output replaces a folder as a whole. Write to another path, or move {'it' if one else 'them'} away first."
    )
    return StoreError(place, problem, remedy=remedy, code=FOREIGN)
