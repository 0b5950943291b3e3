"""Memory maps of files that somebody may cut off meanwhile.

Whoever reads a map behind the end of its file, or where the disk fails, gets SIGBUS, which ends the process. Libraries
that encode read the maps from C, so no check before it helps. While maps are guarded, the signal puts zeros in place
of the map instead and the read goes on; what was made of it is thrown away, since the map is known to be lost.

The handler is Python, called in the thread that read: the signal comes from that very instruction, which is a load
from a map and never inside of the interpreter's own data or of malloc.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from threading import Lock

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.local import LocalFile

_MAP_FIXED = 0x10
_SA_SIGINFO = 4
_SI_ADDR = 16
"""Bytes before the address in `siginfo_t` of 64-bit Linux."""

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _SigAction(ctypes.Structure):
    """`struct sigaction` of 64-bit Linux, of glibc and musl."""

    _fields_ = (
        ("handler", _HANDLER),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class FileMap:
    """A read-only map of all bytes that a file had when it was opened."""

    def __init__(self, file: LocalFile):
        import numpy as np

        self.file, self.is_lost = file, False
        with file.lease() as fd:
            try:
                self.buffer = mmap.mmap(fd, file.size, access=mmap.ACCESS_READ)
            except ValueError:  # it is shorter now
                file.verify_unchanged()
                raise
        self._start = np.frombuffer(self.buffer, np.uint8).ctypes.data

    def holds(self, address: int) -> bool:
        """Whether an address is one of its bytes, or behind them in their last page."""
        return self._start <= address < self._start + -(-self.file.size // mmap.PAGESIZE) * mmap.PAGESIZE

    def lose(self) -> None:
        """Puts zeros in its place, for good."""
        if not self.is_lost:
            flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            if _mmap()(self._start, self.file.size, mmap.PROT_READ, flags, -1, 0) == self._start:
                self.is_lost = True

    def verify(self) -> None:
        """Raises StoreError if its file is no longer what it was, or if a part of it could not be read."""
        self.file.verify_unchanged()
        if self.is_lost:
            problem = "could not be read while the output was written, so nothing was published"
            raise StoreError(self.file.name, problem, remedy="Check the disk or network before trying again.")


class _Guard:
    """The maps that are guarded now, in all threads, and what handled SIGBUS before."""

    def __init__(self) -> None:
        self._maps: list[FileMap] = []
        self._lock = Lock()
        self._before = _SigAction()
        self._own = _SigAction(_HANDLER(self._handle), flags=_SA_SIGINFO)

    def add(self, maps: Collection[FileMap]) -> None:
        """Guards some more."""
        with self._lock:
            if not self._maps:
                _sigaction(self._own, self._before)
            self._maps = [*self._maps, *maps]

    def remove(self, maps: Collection[FileMap]) -> None:
        """Guards some no longer."""
        with self._lock:
            self._maps = [known for known in self._maps if known not in maps]
            if not self._maps:
                _sigaction(self._before, None)

    def _handle(self, number: int, info: int, context: int) -> None:
        address = ctypes.c_uint64.from_address(info + _SI_ADDR).value
        found = next((known for known in self._maps if known.holds(address)), None)
        if found is not None:
            found.lose()
        if found is None or not found.is_lost:
            _sigaction(self._before, None)  # not ours: the read is repeated, and its signal goes where it went before


_CAN_GUARD = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
_GUARD = _Guard()


@contextmanager
def guard(maps: Collection[FileMap]) -> Iterator[None]:
    """A block in which a read of `maps` that fails does not end the process. Call `verify` of them afterwards."""
    if not maps or not _CAN_GUARD:
        yield
        return
    _GUARD.add(maps)
    try:
        yield
    finally:
        _GUARD.remove(maps)


def _sigaction(new: _SigAction, old: _SigAction | None) -> None:
    ctypes.CDLL(None).sigaction(int(signal.SIGBUS), ctypes.byref(new), None if old is None else ctypes.byref(old))


def _mmap() -> ctypes._NamedFuncPointer:
    found = ctypes.CDLL(None).mmap
    found.restype = ctypes.c_size_t
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    return found
