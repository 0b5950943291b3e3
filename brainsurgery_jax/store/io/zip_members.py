"""Where the members of a zip archive lie in its file. Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT

Archives of numpy and torch hold their tensors uncompressed, so that they can be read in place.
"""

from __future__ import annotations

import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.files import File, read_bytes
from brainsurgery_jax.store.safetensors.header import AGAIN

_AHEAD = 1 << 18
"""Bytes of a pickle that are read at a time."""

_LOCAL_HEADER = 30
"""Bytes before the name of a member, which is repeated before its data."""


class Window(io.RawIOBase):
    """Bytes `start` to `start + nbytes` of a file (default: all of it) as a file of their own, read by position."""

    def __init__(self, file: File, start: int = 0, nbytes: int | None = None):
        self.start, self.nbytes = start, file.size - start if nbytes is None else nbytes
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.nbytes}[whence]
        if origin + offset < 0:
            raise OSError(f"cannot seek to {origin + offset}")
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def bytes_at(self, offset: int, nbytes: int) -> bytes:
        """Bytes at a position, fewer at the end. Does not seek: a buffered reader of this window would not know."""
        count = max(0, min(nbytes, self.nbytes - offset))
        return read_bytes(self._file, count, self.start + offset)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self.nbytes - self._at))
        buffer[:count] = read_bytes(self._file, count, self.start + self._at)
        self._at += count
        return count


class WindowBytes:
    """Pickles in a window, one after the other; see `pickle_machine.Bytes`."""

    def __init__(self, window: Window):
        self._window, self._at, self.nbytes = window, 0, window.nbytes

    def next(self, nbytes: int) -> bytes:
        """The next bytes, at least so many if there are."""
        found = self._window.bytes_at(self._at, max(nbytes, _AHEAD))
        self._at += len(found)
        return found


@contextmanager
def zip_failures(path: str, what: str) -> Iterator[None]:
    """Makes what may go wrong with a damaged archive a StoreError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise StoreError(path, f"the {what} is damaged: {error}", remedy=AGAIN) from error
    except UnicodeDecodeError as error:
        raise StoreError(path, f"the {what} is damaged: the name of a member is no text", remedy=AGAIN) from error


def refuse_encrypted(archive: zipfile.ZipFile, path: str) -> None:
    """Raises StoreError for an archive that only a password opens."""
    for member in archive.infolist():
        if member.flag_bits & 1:
            remedy = "Unpack the archive with its password, and pack it again without one: `zip -0 -r`."
            raise StoreError(path, f"the member '{member.filename}' is encrypted", remedy=remedy)


def leads_out(name: str) -> bool:
    """Whether a member of this name would be unpacked outside of the folder that the archive is unpacked into."""
    return name.startswith("/") or ".." in name.replace("\\", "/").split("/")


def data_offset(window: Window, member: zipfile.ZipInfo, *, path: str) -> int:
    """Where the data of a member begin. Compressed or not, they must lie inside the window as a whole: who opens a
    member before this is known seeks wherever the archive says, and reads as much as it says."""
    inside = 0 <= member.header_offset <= window.nbytes
    header = window.bytes_at(member.header_offset, _LOCAL_HEADER) if inside else b""
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise StoreError(path, f"the member '{member.filename}' is not where the archive says", remedy=AGAIN)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = member.header_offset + _LOCAL_HEADER + name + extra
    if start + member.compress_size > window.nbytes:
        raise StoreError(path, f"is cut off inside the member '{member.filename}'", remedy=AGAIN)
    return start


def is_stored(member: zipfile.ZipInfo) -> bool:
    """Whether a member is stored without compression."""
    return member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
