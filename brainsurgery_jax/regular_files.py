"""Opening regular files and nothing else: a FIFO in place of a file would wait for ever, a device would never end."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO

MOST_BYTES = 100_000_000
"""Bytes of a file that is read as a whole: a config, an index, ops. Larger ones are something else."""

_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def open_descriptor(path: str, flags: int) -> int:
    """A descriptor of the regular file at `path`, links followed. Raises OSError for anything else, without opening it.

    The signature is that of the `opener` of the built-in `open`.
    """
    _refuse_others(path, os.stat(path).st_mode)
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _refuse_others(path, os.fstat(fd).st_mode)  # it may have been replaced in between
    except OSError:
        os.close(fd)
        raise
    return fd


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """The regular file at `path`, open for reading. Raises OSError for anything else."""
    return open(path, "rb", opener=open_descriptor)


def read_regular(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """All bytes of the regular file at `path`. Raises OSError for anything else, and for more than `most` bytes."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
    return content


def _refuse_others(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'something')}, not a file", path)
