"""Reading, writing and copying byte ranges of files by position, so that threads may share a descriptor."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache

from brainsurgery_jax.store.io.files import CHUNK, truncation_error

EARLY = 1 << 20
"""Bytes; shorter runs are not sent to the disk before the end."""

WRITTEN = 1 << 18
"""Bytes that are written at a time. For longer runs the system takes longer pages, which a virtual machine may have
given back to its host: a bare loop of writes, 2.5 GB in all, took 0.2 s so; by 512 KB at a time it took 0.2 s too, or
0.5 to 2 s if the machine had been idle for a second."""

_FICLONE = 0x40049409  # linux/fs.h
_SYNC_FILE_RANGE_WRITE = 2
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_CANNOT_ALLOCATE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def read_into(fd: int, view: memoryview, offset: int, *, path: str, tensor: str | None = None) -> None:
    """Fills `view` with the bytes of the file from `offset` on; a file that ends too early is a StoreError."""
    done = 0
    while done < len(view):
        count = _pread(fd, view[done:], offset + done)
        if not count:
            raise truncation_error(path, offset + done, len(view) - done, tensor=tensor)
        done += count


def _pread(fd: int, view: memoryview, offset: int) -> int:
    if (preadv := getattr(os, "preadv", None)) is not None:
        return preadv(fd, [view], offset)  # the kernel stops at 2 GiB, the loop goes on
    data = os.pread(fd, min(len(view), CHUNK), offset)
    view[: len(data)] = data
    return len(data)


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """Writes all of `view` at `offset`, however little the system takes at a time."""
    done = 0
    while done < len(view):
        count = os.pwrite(fd, view[done : done + WRITTEN], offset + done)
        if not count:
            raise OSError(errno.EIO, "the system accepted no more bytes")
        done += count


def write_rows(fd: int, view: memoryview, offsets: Sequence[int], nbytes: int) -> None:
    """Writes each `nbytes` bytes of `view` at an offset of its own."""
    at = 0
    for offset in offsets:  # a call each, with as little around it as can be: rows may be a few kilobytes
        if os.pwrite(fd, view[at : at + nbytes], offset) != nbytes:
            write_all(fd, view[at : at + nbytes], offset)
        at += nbytes


def allocate(fd: int, nbytes: int) -> None:
    """Reserves the blocks of a new file, so that running out of space shows before the work; else sets its size."""
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is not None and nbytes:
        try:
            reserve(fd, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
    os.ftruncate(fd, nbytes)


def copy_range(source: int, source_offset: int, target: int, offset: int, nbytes: int, *, path: str) -> None:
    """Copies bytes from one descriptor to another: in the kernel where it can (maybe sharing blocks), else by chunks.

    `path` names the source in the error for a file that ends too early.
    """
    done = _copy_in_kernel(source, source_offset, target, offset, nbytes)
    if done == nbytes:
        return
    buffer = memoryview(bytearray(min(CHUNK, nbytes - done)))
    while done < nbytes:
        chunk = buffer[: nbytes - done]
        read_into(source, chunk, source_offset + done, path=path)
        write_all(target, chunk, offset + done)
        done += len(chunk)


def _copy_in_kernel(source: int, source_offset: int, target: int, offset: int, nbytes: int) -> int:
    """Bytes copied before the kernel declined. Zero may mean end of file: the plain loop finds out."""
    copy = getattr(os, "copy_file_range", None)
    done = 0
    while copy is not None and done < nbytes:
        try:
            count = copy(source, target, nbytes - done, source_offset + done, offset + done)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            break
        if not count:
            break
        done += count
    return done


def clone(source: int, target: int) -> bool:
    """Whether the empty file `target` now holds what `source` holds, by sharing its blocks; no byte was copied."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # most file systems cannot; what else may be wrong shows when the bytes are copied
        return False
    return True


def begin_flush(fd: int, offset: int, nbytes: int) -> None:
    """Tells the system to send written bytes to the disk now and not to wait, so that a flush at the end finds little
    left to do. Only advice: it does nothing for short runs, or where the system has no such call."""
    call = _sync_file_range()
    if call is not None and nbytes >= EARLY:
        call(fd, offset, nbytes, _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's call; unlike `posix_fadvise` it leaves the bytes in memory for whoever reads the file next."""
    if sys.platform != "linux":
        return None
    import ctypes  # only who writes should wait for it

    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
    return call
