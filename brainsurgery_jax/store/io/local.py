"""The files and folders of a file system, as `files.py` wants them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol

from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.descriptors import Descriptors, make_room
from brainsurgery_jax.store.io.files import CHUNK, File, NewFile, Stamp, copy_through_memory
from brainsurgery_jax.store.io.positioned import (
    allocate,
    begin_flush,
    clone,
    copy_range,
    read_into,
    write_all,
    write_rows,
)

_FILE_MODE = 0o666  # less the umask; the stock library leaves 0600, which others cannot read
_FOLDER_MODE = 0o777
_PRIVATE = 0o700


class LocalFile:
    """A file of a file system, open for reading; see `files.File`. It has a descriptor, which the system can copy from
    and map."""

    def __init__(self, path: str, descriptors: Descriptors, number: int):
        self.name = path
        self._descriptors, self._number = descriptors, number

    @property
    def size(self) -> int:
        """Its bytes, when it was opened."""
        return self.stamp.size

    @property
    def stamp(self) -> Stamp:
        """What it was when it was opened."""
        return self._descriptors.stamp(self._number)

    def lease(self) -> AbstractContextManager[int]:
        """A descriptor, kept open inside the `with` block and not to be used after it."""
        return self._descriptors.lease(self._number)

    def read_into(self, view: memoryview, offset: int, *, tensor: str | None = None) -> None:
        """Fills `view` with the bytes from `offset` on."""
        with self.lease() as fd:
            read_into(fd, view, offset, path=self.name, tensor=tensor)

    def verify_unchanged(self) -> None:
        """Raises StoreError if it was replaced, resized or written to since it was opened."""
        self._descriptors.verify_unchanged(self._number)

    def link(self, path: str) -> bool:
        """Whether `path` is a hard link to it now."""
        return self._descriptors.link(self._number, path)

    def close(self) -> None:
        """Gives its descriptor back."""
        self._descriptors.close(self._number)


def open_files(paths: Sequence[str], *, limit: int = 64) -> tuple[LocalFile, ...]:
    """Files for reading, each opened when it is first used; at most `limit` are open beside those in use."""
    descriptors = Descriptors(paths, os.O_RDONLY, watch=True, limit=limit)
    return tuple(LocalFile(path, descriptors, number) for number, path in enumerate(paths))


class WriteLog(Protocol):
    """Notes what is written to files in the making."""

    @property
    def is_writing(self) -> bool:
        """Whether it notes what this thread writes now."""
        ...

    def wrote(self, path: str, offsets: Sequence[int], nbytes: int, view: memoryview) -> None:
        """Notes `nbytes` bytes at each of `offsets`, which are those of `view`, one after the other."""
        ...


class NewLocalFile:
    """A file of a file system in the making; see `files.NewFile`. `log`: what notes its bytes."""

    def __init__(self, path: str, descriptors: Descriptors, number: int, log: WriteLog | None = None):
        self.name = path
        self._descriptors, self._number, self._log = descriptors, number, log

    def _lease(self) -> AbstractContextManager[int]:
        return self._descriptors.lease(self._number)

    def write(self, view: memoryview, offset: int) -> None:
        """Writes all of `view` at `offset`."""
        with self._lease() as fd:
            write_all(fd, view, offset)
        if self._log is not None:
            self._log.wrote(self.name, (offset,), len(view), view)

    def write_rows(self, view: memoryview, offsets: Sequence[int], nbytes: int) -> None:
        """Writes each `nbytes` bytes of `view` at an offset of its own."""
        with self._lease() as fd:
            write_rows(fd, view, offsets, nbytes)
        if self._log is not None:
            self._log.wrote(self.name, offsets, nbytes, view)

    def copy(self, file: File, start: int, offset: int, nbytes: int) -> None:
        """Writes bytes of another file at `offset`, by the operating system if that file has a descriptor, too."""
        if not isinstance(file, LocalFile):
            copy_through_memory(file, start, self, offset, nbytes)
            return
        with file.lease() as source, self._lease() as fd:
            copy_range(source, start, fd, offset, nbytes, path=file.name)
        if self._log is not None and self._log.is_writing:
            buffer = memoryview(bytearray(min(CHUNK, nbytes)))
            for done in range(0, nbytes, CHUNK):
                part = buffer[: nbytes - done]
                file.read_into(part, start + done)
                self._log.wrote(self.name, (offset + done,), len(part), part)

    def begin_flush(self, offset: int, nbytes: int) -> None:
        """Sends written bytes to the disk without waiting."""
        with self._lease() as fd:
            begin_flush(fd, offset, nbytes)

    def close(self) -> None:
        """Gives its descriptor back."""
        self._descriptors.close(self._number)


class LocalPlace:
    """A path of a file system, that is a file or a folder or will be; see `files.Place`. With `private` nobody else may
    look into it while it is made. `again`: an interrupted run made a part of it; files of the right size are gone on
    with. `log` notes what is written."""

    def __init__(self, path: str, *, private: bool = False, again: bool = False, log: WriteLog | None = None):
        self.path, self._private, self._again, self._log = path, private, again, log
        self._new = Descriptors((), os.O_RDWR, watch=False)

    def list(self) -> Sequence[str]:
        """The names of all files, sorted."""
        if os.path.isfile(self.path):
            return [""]
        walked = os.walk(self.path)
        found = (os.path.relpath(os.path.join(folder, n), self.path) for folder, _, names in walked for n in names)
        return sorted(name.replace(os.sep, "/") for name in found)

    def path_of(self, name: str) -> str:
        """The path of a file."""
        return os.path.join(self.path, name) if name else self.path

    def open(self, name: str) -> LocalFile:
        """A file, open for reading."""
        (file,) = open_files([self.path_of(name)])
        return file

    def create_folder(self) -> None:
        """Makes the path a folder; fails if it is there."""
        if self._again and os.path.isdir(self.path):
            return
        os.mkdir(self.path, _FOLDER_MODE & _PRIVATE if self._private else _FOLDER_MODE)

    def create(self, name: str, nbytes: int) -> NewFile:
        """A new file, for which the space is reserved."""
        if self._again and os.path.isfile(path := self.path_of(name)):
            if os.path.getsize(path) == nbytes:
                return self._new_file(name)
            os.remove(path)
        with self._create_file(name) as fd:
            allocate(fd, nbytes)
        return self._new_file(name)

    def stream(self, name: str) -> IO[bytes]:
        """A new file that is written from its start to its end."""
        with self._create_file(name):
            return open(self.path_of(name), "r+b")

    def clone(self, name: str, file: File, *, link: bool = False) -> NewFile | None:
        """A new file that shares the blocks of another, if the file system can; else, with `link`, a hard link."""
        if not isinstance(file, LocalFile) or (self._again and os.path.lexists(self.path_of(name))):
            return None
        with self._create_file(name) as fd, file.lease() as source:
            if clone(source, fd):
                return self._new_file(name)
        os.remove(self.path_of(name))
        return self._new_file(name) if link and file.link(self.path_of(name)) else None

    @contextmanager
    def _create_file(self, name: str) -> Iterator[int]:
        """A descriptor of a file that was not there, which goes again if its block fails."""
        mode = _FILE_MODE & _PRIVATE if self._private and not name else _FILE_MODE
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        fd = make_room(lambda: os.open(self.path_of(name), flags, mode))
        try:
            yield fd
        except BaseException:
            os.remove(self.path_of(name))
            raise
        finally:
            os.close(fd)

    def _new_file(self, name: str) -> NewFile:
        path = self.path_of(name)
        return NewLocalFile(path, self._new, self._new.add(path), self._log)

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file as a whole, also over one that is there."""
        path = self.path_of(name)
        with os_failures(path, "write the file"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)

    def flush(self) -> None:
        """Flushes all files, and the folders that they are in; links are not followed."""
        for folder, _, names in os.walk(self.path):
            for name in names:
                inner = os.path.join(folder, name)
                if not os.path.islink(inner):
                    fsync_path(inner)
            fsync_path(folder)
        if os.path.isfile(self.path):
            fsync_path(self.path)


def count_links(path: str) -> int:
    """How many files of a checkpoint have other names, too."""
    place = LocalPlace(path)
    return sum(os.stat(place.path_of(name)).st_nlink > 1 for name in place.list())


def fsync_path(path: str) -> None:
    """Flushes a file or a folder to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
