"""Tensors at known byte offsets of files, row by row, and how boxes and ranges of them are read.

Elements come by `pread` into fresh memory, not from a memory map: a file truncated under a map kills the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

from brainsurgery_jax.index.boxes import Box, whole
from brainsurgery_jax.store.base import FileRun, Fingerprint, Header, TensorInfo, fingerprint_of
from brainsurgery_jax.store.failures import no_tensor, os_failures
from brainsurgery_jax.store.io.arrays import byte_view, empty_aligned, numpy_dtype
from brainsurgery_jax.store.io.box_reads import read_box
from brainsurgery_jax.store.io.files import File

if TYPE_CHECKING:
    import numpy as np


class ByteSource:
    """A checkpoint whose tensors lie in its files as plain little-endian bytes; see `base.Source`. `files` are those
    that `header.files` names."""

    def __init__(self, header: Header, files: Sequence[File]):
        self.header = header
        self._files = files
        self._lock = Lock()
        self._bytes_read = 0

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far, gaps of strided reads included, headers not."""
        return self._bytes_read

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        info = self._info(name)
        box = whole(info.aval.shape) if box is None else box
        dtype = self._numpy_dtype(name, info)
        return read_box(info.aval.shape, dtype, box, lambda view, start: self._fill(name, info, view, start))

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        info = self._info(name)
        assert 0 <= start <= stop <= info.aval.size, (name, start, stop)
        result = empty_aligned((stop - start,), self._numpy_dtype(name, info))
        self._fill(name, info, byte_view(result), start)
        return result

    def _fill(self, name: str, info: TensorInfo, view: memoryview, start: int) -> None:
        file = self._files[info.file]
        with os_failures(file.name, f"read tensor '{name}'"):
            file.read_into(view, info.offset + start * info.aval.dtype.bits // 8, tensor=name)
        with self._lock:
            self._bytes_read += len(view)

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if packed elements do not begin and end at whole bytes."""
        info = self._info(name)
        assert 0 <= start <= stop <= info.aval.size, (name, start, stop)
        (first, odd), (last, rest) = (divmod(n * info.aval.dtype.bits, 8) for n in (start, stop))
        return None if odd or rest else FileRun(self._files[info.file], info.offset + first, last - first)

    @property
    def fingerprint(self) -> Fingerprint:
        """The stamps of the files, and a digest of the header."""
        return fingerprint_of(self.header, {file.name: file.stamp for file in self._files})

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file was replaced, resized or written to since it was opened."""
        for file in self._files:
            file.verify_unchanged()

    def close(self) -> None:
        """Closes all files."""
        for file in self._files:
            file.close()

    def _info(self, name: str) -> TensorInfo:
        info = self.header.tensors.get(name)
        if info is None:
            raise no_tensor(self.header.path, name, self.header.tensors)
        return info

    def _numpy_dtype(self, name: str, info: TensorInfo) -> np.dtype:
        return numpy_dtype(info.aval.dtype, path=self.header.files[info.file], tensor=name)
