"""Files and places behind a protocol: readers, writers and the engine know no path and no descriptor.

`local.py` has the files of the file system. Another kind of storage implements `File`, `NewFile`, `Place` and
`Commit`; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import IO, NamedTuple, Protocol

from brainsurgery_jax.errors import Diagnostic, StoreError

CHUNK = 8 << 20
"""Bytes in memory at once where a copy must go through memory."""


class Stamp(NamedTuple):
    """The identity of a file, found without reading it: its size in bytes, and its version there
    (of a local file `DEVICE-INODE-MTIME_NS`; an object store has one of its own)."""

    size: int
    version: str


class File(Protocol):
    """A file open for reading by position. Every method may be called from any thread."""

    @property
    def name(self) -> str:
        """What errors call it: the path of a local file."""
        ...

    @property
    def size(self) -> int:
        """Its bytes, when it was opened."""
        ...

    @property
    def stamp(self) -> Stamp:
        """What it was when it was opened."""
        ...

    def read_into(self, view: memoryview, offset: int, *, tensor: str | None = None) -> None:
        """Fills `view` with the bytes from `offset` on. Raises OSError, or StoreError for a file that ends too early,
        which names the `tensor`."""
        ...

    def verify_unchanged(self) -> None:
        """Raises StoreError if it was replaced, resized or written to since it was opened."""
        ...

    def close(self) -> None:
        """Gives back what it holds open. May be called twice."""
        ...


class NewFile(Protocol):
    """A file of known size in the making, written by position in any order. Every method may be called from any
    thread."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def write(self, view: memoryview, offset: int) -> None:
        """Writes all of `view` at `offset`."""
        ...

    def write_rows(self, view: memoryview, offsets: Sequence[int], nbytes: int) -> None:
        """Writes each `nbytes` bytes of `view` at an offset of its own."""
        ...

    def copy(self, file: File, start: int, offset: int, nbytes: int) -> None:
        """Writes `nbytes` bytes of another file from `start` on at `offset`, without taking them through memory if
        both files can."""
        ...

    def begin_flush(self, offset: int, nbytes: int) -> None:
        """Advice that these bytes will not change, and may go to the disk now."""
        ...

    def close(self) -> None:
        """Gives back what it holds open. May be called twice."""
        ...


class Place(Protocol):
    """Where the files of a checkpoint lie, by relative names with `/` between folders; the empty name is the place
    itself where it is a single file."""

    def list(self) -> Sequence[str]:
        """The names of all files, sorted."""
        ...

    def open(self, name: str) -> File:
        """A file, open for reading. Raises StoreError."""
        ...

    def create_folder(self) -> None:
        """Makes the place a folder, in which files are created; fails if it is there."""
        ...

    def create(self, name: str, nbytes: int) -> NewFile:
        """A new file of `nbytes` bytes; fails if there is one of that name."""
        ...

    def stream(self, name: str) -> IO[bytes]:
        """A new file that is written from its start to its end, by libraries that do not say how long it will be; fails
        if there is one of that name."""
        ...

    def clone(self, name: str, file: File, *, link: bool = False) -> NewFile | None:
        """A new file that shares the bytes of another, and of which nothing needs to be copied; None if the place
        cannot do so. `link`: it may be that file, under one more name."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file as a whole, also over one that is there."""
        ...

    def flush(self) -> None:
        """Returns when all files will survive a loss of power."""
        ...


class StagedOutput(Protocol):
    """An output on its way: where its files are written, and where it will appear."""

    @property
    def destination(self) -> str:
        """Where it will appear; errors name it."""
        ...

    @property
    def place(self) -> Place:
        """Where its files are written."""
        ...

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """What is to be reported of the destination."""
        ...

    def abandon(self) -> None:
        """Removes what was written. May be called at any time, and twice."""
        ...


class Left(NamedTuple):
    """What an output has replaced and was not removed: where it is now, and why. `kept`: it holds something else, that
    appeared there at the last moment."""

    destination: str
    path: str
    reason: str
    kept: bool = False


class Commit(Protocol):
    """How outputs appear, whole or not at all: by a rename where a file system has one, by files that are written after
    everything else where objects cannot be renamed (`publishing.ByPlace`)."""

    def stage(self, destination: str, *, overwrite: bool, own: Collection[str]) -> StagedOutput:
        """An output that is not there yet. `own`: files at the destination that are known to belong to what it
        replaces."""
        ...

    def prepare(self, staged: Sequence[StagedOutput]) -> None:
        """Does what may take long before outputs can appear; they are complete. Raises StoreError."""
        ...

    def publish(self, staged: Sequence[StagedOutput], *, durable: bool) -> tuple[Left, ...]:
        """Makes all outputs appear. Raises StoreError, which names those that are published already."""
        ...


def read_bytes(file: File, nbytes: int, offset: int) -> bytes:
    """Exactly `nbytes` bytes of the file from `offset` on."""
    buffer = bytearray(nbytes)
    file.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def copy_through_memory(file: File, start: int, target: NewFile, offset: int, nbytes: int) -> None:
    """Copies bytes from any file to any other, by chunks."""
    buffer = memoryview(bytearray(min(CHUNK, nbytes)))
    for done in range(0, nbytes, CHUNK):
        chunk = buffer[: nbytes - done]
        file.read_into(chunk, start + done)
        target.write(chunk, offset + done)


def truncation_error(name: str, end: int, missing: int, *, tensor: str | None = None) -> StoreError:
    """The error for a file that ends at byte `end`, `missing` bytes too early."""
    problem = f"truncated while reading: the file ends at byte {end}, {missing} bytes too early"
    remedy = "Something shortened the file while it was in use; restore it and run again."
    return StoreError(name, problem, tensor=tensor, remedy=remedy)
