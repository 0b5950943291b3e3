"""Open files by number: opened when needed, kept open, never more than a few dozen, and checked when reopened."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.failures import os_failures


class Fingerprint(NamedTuple):
    """What tells a file from a changed or another one, short of reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        """The fingerprint in a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Watch:
    """The files of a checkpoint that somebody else opens: what they were like at the start."""

    def __init__(self, paths: Sequence[str]):
        self._seen = {path: _look(path) for path in paths}

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file is no longer what it was."""
        for path, seen in self._seen.items():
            if _look(path, " again") != seen:
                raise _changed(path)


def _look(path: str, more: str = "") -> Fingerprint:
    with os_failures(path, f"look at the file{more}"):
        return Fingerprint.of(os.stat(path))


class Descriptors:
    """Descriptors of `paths`, at most `limit` open beside those in use; the least recently used is closed first.

    With `watch`, a file must be the same each time it is reopened.
    """

    def __init__(self, paths: Sequence[str], flags: int, *, watch: bool, limit: int = 64):
        self._paths, self._flags, self._watch, self._limit = tuple(paths), flags, watch, limit
        self._open: OrderedDict[int, int] = OrderedDict()
        self._leases: Counter[int] = Counter()
        self._seen: dict[int, Fingerprint] = {}
        self._lock = Lock()
        self._closed = False

    @contextmanager
    def lease(self, file: int) -> Iterator[int]:
        """A descriptor that stays open inside the block, whatever other threads open meanwhile."""
        with self._lock:
            fd = self._descriptor(file)
            self._leases[file] += 1
            self._close_idle(self._limit)
        try:
            yield fd
        finally:
            with self._lock:
                self._leases[file] -= 1
                if self._closed:
                    self._close_idle(0)

    def _descriptor(self, file: int) -> int:
        if self._closed:
            raise StoreError(self._paths[file], "was closed, and is used again", remedy="Open the checkpoint anew.")
        if file not in self._open:
            self._open[file] = self._opened(file)
        self._open.move_to_end(file)
        return self._open[file]

    def _opened(self, file: int) -> int:
        path = self._paths[file]
        with os_failures(path, "open the file"):
            fd = os.open(path, self._flags | getattr(os, "O_CLOEXEC", 0))
        found = Fingerprint.of(os.fstat(fd))
        if self._watch and self._seen.setdefault(file, found) != found:
            os.close(fd)
            raise _changed(path)
        return fd

    def _close_idle(self, limit: int) -> None:
        idle = [file for file in self._open if not self._leases[file]] if len(self._open) > limit else []
        for file in idle[: len(self._open) - limit]:
            os.close(self._open.pop(file))

    def verify_unchanged(self) -> None:
        """Raises StoreError if the file behind a path is no longer the one that was opened."""
        for file, seen in sorted(self._seen.items()):
            path = self._paths[file]
            if _look(path, " again") != seen:
                raise _changed(path)

    def close(self) -> None:
        """Closes all descriptors; one in use is closed at the end of its lease."""
        with self._lock:
            self._closed = True
            self._close_idle(0)


def _changed(path: str) -> StoreError:
    remedy = "Another program wrote to it or replaced it; wait until that is done, and run again."
    return StoreError(path, "changed while running: it is not the file that was opened at the start", remedy=remedy)
