"""Bytes of remote files that are kept on this machine, in the folder that the variable BRAINSURGERY_CACHE names.

Each remote file has a folder of its own, named by a digest of its address, size and version, so that a file that
changes is another one. In it, `bytes` is a file with holes in which all lies at its place, and `pieces` has a line for
each piece that is there: where it begins and ends, and its digest. Every piece is compared with that when it is read:
what a crash or another program has spoiled is fetched again. Several runs may use the folder at the same time; they
write the same bytes to the same places. Nothing is ever removed from it; all of it may be deleted at any time.
"""

from __future__ import annotations

import os
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from threading import Lock

from xxhash import xxh3_128_hexdigest

from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.files import Stamp
from brainsurgery_jax.store.remote.places import RemoteItem, RemotePlace

CACHE = "BRAINSURGERY_CACHE"
"""The variable of the environment that names the folder; without it, nothing is kept."""


class CachedPlace:
    """A remote place of which bytes that were read are kept; see `places.RemotePlace`. Raises StoreError for a folder
    that cannot be made. A disk that is full later ends nothing: what cannot be kept is only read."""

    def __init__(self, place: RemotePlace, folder: str):
        self._place, self._folder = place, os.path.expanduser(folder)
        self._files: dict[RemoteItem, CachedFile] = {}
        self._lock = Lock()
        with os_failures(folder, f"make the folder that {CACHE} names"):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)

    def list(self) -> Mapping[str, RemoteItem]:
        """The files, as the place lists them now."""
        return self._place.list()

    def stamp(self, item: RemoteItem) -> Stamp:
        """The size and the version that a file has now."""
        return self._place.stamp(item)

    def read_some(self, item: RemoteItem, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view`: from here as far as there is something, else from the place."""
        if not item.stamp.version or item.stamp.version.startswith("W/"):  # the same version may have other bytes
            return self._place.read_some(item, view, offset)
        kept = self._file(item)
        if count := kept.read(view, offset):
            return count
        count = self._place.read_some(item, view[: kept.missing(offset, len(view))], offset)
        kept.keep(view[:count], offset)
        return count

    def _file(self, item: RemoteItem) -> CachedFile:
        with self._lock:
            if item not in self._files:
                self._files[item] = CachedFile(os.path.join(self._folder, _key_of(item)))
            return self._files[item]

    def close(self) -> None:
        """Closes connections. May be called twice."""
        self._place.close()


class CachedFile:
    """What is kept of a remote file, in a folder of its own. Any thread may call any method."""

    def __init__(self, folder: str):
        self._folder = folder
        self._lock = Lock()
        self._pieces: dict[int, tuple[int, str]] = {}
        with suppress(OSError), open(os.path.join(folder, "pieces"), "rb") as log:
            for line in log:
                match line.split():
                    case [start, stop, digest] if start.isdigit() and stop.isdigit():
                        self._pieces[int(start)] = int(stop), digest.decode(errors="replace")
        self._starts = sorted(self._pieces)

    def read(self, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view` from a piece, and returns how many bytes that are: none where there is none."""
        with self._lock:
            at = bisect_right(self._starts, offset) - 1
            start = self._starts[at] if at >= 0 else 0
            stop, digest = self._pieces.get(start, (0, ""))
        if not start <= offset < stop:
            return 0
        piece = self._read_piece(start, stop)
        if xxh3_128_hexdigest(piece) != digest:
            self._forget(start)
            return 0
        found = piece[offset - start : offset - start + len(view)]
        view[: len(found)] = found
        return len(found)

    def _read_piece(self, start: int, stop: int) -> bytes:
        with suppress(OSError), open(os.path.join(self._folder, "bytes"), "rb", buffering=0) as file:
            if stop <= os.fstat(file.fileno()).st_size:
                return os.pread(file.fileno(), stop - start, start)
        return b""

    def missing(self, offset: int, count: int) -> int:
        """How many of `count` bytes from `offset` on lie before the next piece."""
        with self._lock:
            at = bisect_right(self._starts, offset)
            return min(count, self._starts[at] - offset) if at < len(self._starts) else count

    def keep(self, data: memoryview, offset: int) -> None:
        """Keeps a piece, if the disk takes it: first its bytes, then its line."""
        if not data:
            return
        digest = xxh3_128_hexdigest(data)
        with suppress(OSError):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            if self._write("bytes", os.O_RDWR, lambda fd: os.pwrite(fd, data, offset)) != len(data):
                return
            line = f"{offset} {offset + len(data)} {digest}\n".encode()
            self._write("pieces", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, line))
            with self._lock:
                if offset not in self._pieces:
                    insort(self._starts, offset)
                self._pieces[offset] = offset + len(data), digest

    def _write(self, name: str, flags: int, write: Callable[[int], int]) -> int:
        fd = os.open(os.path.join(self._folder, name), flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return write(fd)
        finally:
            os.close(fd)

    def _forget(self, start: int) -> None:
        with self._lock:
            if self._pieces.pop(start, None) is not None:
                self._starts.remove(start)


def _key_of(item: RemoteItem) -> str:
    """The name of the folder of a file: no secret in an address can be read from it."""
    return sha256(repr((item.url, *item.stamp)).encode()).hexdigest()[:32]
