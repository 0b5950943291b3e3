"""Reading safetensors: one file, or a folder of shards. Only headers are read until somebody asks for elements.

Elements come by `pread` into fresh memory, not from a memory map: a file truncated under a map kills the process.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack
from threading import Lock
from typing import TYPE_CHECKING

from brainsurgery_jax.boxes import Box, box_shape
from brainsurgery_jax.errors import StoreError, did_you_mean
from brainsurgery_jax.store.arrays import aligned_empty, byte_view, numpy_dtype
from brainsurgery_jax.store.base import FileRun, Header, TensorInfo
from brainsurgery_jax.store.boxes import Piece, pieces
from brainsurgery_jax.store.descriptors import Descriptors
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.positioned import read_into
from brainsurgery_jax.store.safetensors_folder import check_placement, checkpoint_files, merge
from brainsurgery_jax.store.safetensors_header import FileHeader, read_header

if TYPE_CHECKING:
    import numpy as np


class SafetensorsSource:
    """A safetensors checkpoint open for reading; see `base.Source`. Any thread may read."""

    def __init__(self, path: str, *, open_files: int = 64):
        files, weight_map = checkpoint_files(path) if os.path.isdir(path) else ([path], None)
        self._descriptors = Descriptors(files, os.O_RDONLY, watch=True, limit=open_files)
        self._lock = Lock()
        self._bytes_read = 0
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            headers = [self._file_header(file, path) for file, path in enumerate(files)]
            shards = [header.tensors for header in headers]
            if weight_map is not None:
                check_placement(path, files, weight_map, shards)
            metadata = {key: text for header in reversed(headers) for key, text in header.metadata.items()}
            plain = {file: header.plain for file, header in enumerate(headers) if header.plain is not None}
            self.header = Header(path, tuple(files), merge(files, shards), metadata, plain)
            on_failure.pop_all()

    def _file_header(self, file: int, path: str) -> FileHeader:
        with self._descriptors.lease(file) as fd, os_failures(path, "read the header"):
            return read_header(fd, path, file)

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far, gaps of strided reads included, headers not."""
        return self._bytes_read

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        info = self._info(name)
        box = tuple((0, n, 1) for n in info.aval.shape) if box is None else box
        dtype = self._numpy_dtype(name, info)
        result = aligned_empty(box_shape(box), dtype)
        scratch = None  # private to this call: memory that was handed out is never used again
        for piece in pieces(info.aval.shape, box, dtype.itemsize):
            if piece.strides is None:
                self._fill(name, info, byte_view(result[(*piece.where, ...)]), piece.start)
                continue
            if scratch is None:
                scratch = aligned_empty((piece.length,), dtype)  # the first piece is the longest
            self._fill(name, info, byte_view(scratch[: piece.length]), piece.start)
            result[piece.where] = _strided(scratch, piece)
        return result

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        info = self._info(name)
        assert 0 <= start <= stop <= info.aval.size, (name, start, stop)
        result = aligned_empty((stop - start,), self._numpy_dtype(name, info))
        self._fill(name, info, byte_view(result), start)
        return result

    def _fill(self, name: str, info: TensorInfo, view: memoryview, start: int) -> None:
        path = self.header.files[info.file]
        offset = info.offset + start * info.aval.dtype.bits // 8
        with self._descriptors.lease(info.file) as fd, os_failures(path, f"read tensor '{name}'"):
            read_into(fd, view, offset, path=path, tensor=name)
        with self._lock:
            self._bytes_read += len(view)

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if packed elements do not begin and end at whole bytes."""
        info = self._info(name)
        assert 0 <= start <= stop <= info.aval.size, (name, start, stop)
        (first, odd), (last, rest) = (divmod(n * info.aval.dtype.bits, 8) for n in (start, stop))
        return None if odd or rest else FileRun(self, info.file, info.offset + first, last - first)

    def fileno(self, file: int) -> AbstractContextManager[int]:
        """A descriptor of `header.files[file]`, kept open inside the `with` block and not to be used after it."""
        return self._descriptors.lease(file)

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file was replaced, resized or written to since it was opened."""
        self._descriptors.verify_unchanged()

    def close(self) -> None:
        """Gives all descriptors back."""
        self._descriptors.close()

    def _info(self, name: str) -> TensorInfo:
        info = self.header.tensors.get(name)
        if info is None:
            near = did_you_mean(name, self.header.tensors)
            raise StoreError(self.header.path, f"has no tensor '{name}' ({len(self.header.tensors)} tensors).{near}")
        return info

    def _numpy_dtype(self, name: str, info: TensorInfo) -> np.dtype:
        return numpy_dtype(info.aval.dtype, path=self.header.files[info.file], tensor=name)


def _strided(scratch: np.ndarray, piece: Piece) -> np.ndarray:
    import numpy as np

    assert piece.strides is not None
    strides = tuple(stride * scratch.itemsize for stride in piece.strides)
    return np.ndarray(piece.shape, scratch.dtype, buffer=scratch, strides=strides)
