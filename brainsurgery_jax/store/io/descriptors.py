"""Open files by number: opened when needed, kept open, never more than a few dozen, and checked when reopened."""

from __future__ import annotations

import errno
import os
import sys
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from threading import Lock
from typing import ClassVar

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.regular_files import open_descriptor
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.files import Stamp


class Watch:
    """The files of a checkpoint that somebody else opens: what they were like at the start."""

    def __init__(self, paths: Sequence[str]):
        self.stamps = {path: stamp_of(path) for path in paths}

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file is no longer what it was."""
        for path, seen in self.stamps.items():
            verify(path, seen)


def stamp_of(path: str, more: str = "") -> Stamp:
    """The stamp of the file at a path, links followed."""
    with os_failures(path, f"look at the file{more}"):
        return _stamp(os.stat(path))


def verify(path: str, seen: Stamp) -> None:
    """Raises StoreError if the file at a path is not the one that was seen."""
    if stamp_of(path, " again") != seen:
        raise _change_error(path)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, f"{status.st_dev:x}-{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}")


def _before_entry(stamp: Stamp) -> str:
    """The version of a file without the last change of its entry: of its names, its owner, its mode."""
    return stamp.version.rpartition("-")[0]


class Descriptors:
    """Descriptors of `paths`, at most `limit` open beside those in use; the least recently used is closed first.

    With `watch`, a file must be the same each time it is reopened. Once the process may open no more, all of them close
    every file after its use.
    """

    everywhere: ClassVar[weakref.WeakSet[Descriptors]] = weakref.WeakSet()

    def __init__(self, paths: Sequence[str], flags: int, *, watch: bool, limit: int = 64):
        self._paths, self._flags, self._watch, self._limit = list(paths), flags, watch, limit
        self._open: OrderedDict[int, int] = OrderedDict()
        self._leases: Counter[int] = Counter()
        self._seen: dict[int, Stamp] = {}
        self._lock = Lock()
        self._closed: set[int] = set()
        Descriptors.everywhere.add(self)
        # A checkpoint that is never closed releases its descriptors once it is no longer referenced.
        weakref.finalize(self, _close_all, self._open).atexit = False

    def add(self, path: str) -> int:
        """Takes in another file, and returns its number."""
        with self._lock:
            self._paths.append(path)
            return len(self._paths) - 1

    def lease(self, file: int) -> AbstractContextManager[int]:
        """A descriptor that stays open inside the block, whatever other threads open meanwhile."""
        return _Lease(self, file)

    def take(self, file: int) -> int:
        """The descriptor of a file, which stays open until it is given back."""
        with self._lock:
            fd = self._descriptor(file)
            self._leases[file] += 1
            self._close_idle(self._limit)
        return fd

    def give_back(self, file: int) -> None:
        """Says that a descriptor that was taken is no longer used."""
        with self._lock:
            self._leases[file] -= 1
            if file in self._closed or not self._limit:
                self._close_if_idle(file)

    def _descriptor(self, file: int) -> int:
        if file in self._closed:
            raise StoreError(self._paths[file], "was closed, and is used again", remedy="Open the checkpoint anew.")
        if file not in self._open:
            self._open[file] = self._open_file(file)
        self._open.move_to_end(file)
        return self._open[file]

    def _open_file(self, file: int) -> int:
        path = self._paths[file]
        with os_failures(path, "open the file"):
            fd = make_room(lambda: open_descriptor(path, self._flags), self)
        if self._watch and self._seen.setdefault(file, found := _stamp(os.fstat(fd))) != found:
            os.close(fd)
            raise _change_error(path)
        return fd

    def keep_none(self, *, locked: bool) -> None:
        """Keep no idle file open any more. What the caller has not `locked` is left alone while a thread uses it."""
        if locked or self._lock.acquire(blocking=False):
            try:
                self._limit = 0
                self._close_idle(0)
            finally:
                if not locked:
                    self._lock.release()

    def _close_idle(self, limit: int) -> None:
        idle = [file for file in self._open if not self._leases[file]] if len(self._open) > limit else []
        for file in idle[: len(self._open) - limit]:
            os.close(self._open.pop(file))

    def _close_if_idle(self, file: int) -> None:
        if file in self._open and not self._leases[file]:
            os.close(self._open.pop(file))

    def stamp(self, file: int) -> Stamp:
        """What a file was when it was first opened, which is now if it was not yet."""
        if file not in self._seen:
            with self.lease(file):
                pass
        return self._seen[file]

    def link(self, file: int, path: str) -> bool:
        """Whether `path` is a hard link to a file now. There is none to a file of another file system or another user,
        nor to one that has changed since it was opened. A link changes the time of the last change of the file's entry,
        which is a part of its stamp: it is seen anew."""
        seen, real = self.stamp(file), os.path.realpath(self._paths[file])
        with self._lock:
            if stamp_of(real) != seen:
                return False
            try:
                os.link(real, path)
            except OSError:
                return False
            found = stamp_of(path)
            if found.size != seen.size or _before_entry(found) != _before_entry(seen):
                os.remove(path)
                return False
            self._seen[file] = found
            return True

    def verify_unchanged(self, file: int) -> None:
        """Raises StoreError if the file behind a path is no longer the one that was opened."""
        if file in self._seen:
            verify(self._paths[file], self._seen[file])

    def close(self, file: int | None = None) -> None:
        """Closes one file, or all; one in use is closed at the end of its lease."""
        with self._lock:
            for number in range(len(self._paths)) if file is None else (file,):
                self._closed.add(number)
                self._close_if_idle(number)


class _Lease(AbstractContextManager[int]):
    """A descriptor in use. Each read has one: a generator would take some times as long."""

    __slots__ = ("_file", "_owner")

    def __init__(self, owner: Descriptors, file: int):
        self._owner, self._file = owner, file

    def __enter__(self) -> int:
        return self._owner.take(self._file)

    def __exit__(self, *failure: object) -> None:
        self._owner.give_back(self._file)


def make_room(open_one: Callable[[], int], locked: Descriptors | None = None) -> int:
    """The descriptor that a function opens. If the process may open no more, all that is idle is closed first.
    `locked`: the descriptors that call this."""
    try:
        return open_one()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    for each in list(Descriptors.everywhere):
        each.keep_none(locked=each is locked)
    return open_one()


def most_open() -> int:
    """How many files this process may have open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def check_room(count: int) -> None:
    """Raises OSError if the process cannot open so many more files."""
    with ExitStack() as opened:
        for _ in range(count):
            opened.callback(os.close, make_room(lambda: os.open(os.devnull, os.O_RDONLY)))


def _close_all(descriptors: Mapping[int, int]) -> None:
    for fd in descriptors.values():
        os.close(fd)


def _change_error(path: str) -> StoreError:
    remedy = "Another program wrote to it or replaced it; wait until that is done, and run again."
    return StoreError(path, "changed while running: it is not the file that was opened at the start", remedy=remedy)
