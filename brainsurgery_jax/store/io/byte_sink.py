"""Files of known layout in the making: tensors are put at their byte offsets in any order, by any thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import FileRun, TensorInfo
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.arrays import byte_view, numpy_dtype
from brainsurgery_jax.store.io.files import NewFile

if TYPE_CHECKING:
    import numpy as np


class ByteSink:
    """Takes the bytes of tensors to their `places` in `files`, and counts them.

    `destination` is what errors name. With `flush`, written bytes are sent to the disk at once.
    """

    def __init__(self, destination: str, files: Sequence[NewFile], places: Mapping[str, TensorInfo], *, flush: bool):
        self._destination, self._files, self._places, self._flush = destination, files, places, flush
        self._written: Counter[str] = Counter()
        self._lock = Lock()

    def put(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes `data`, in row-major order, at flat element offset `start` of the tensor."""
        import numpy as np

        aval = self._places[name].aval
        dtype = numpy_dtype(aval.dtype, path=self._destination, tensor=name)
        assert data.dtype == dtype, f"'{name}' is {aval}, the data are {data.dtype}"
        view = byte_view(np.ascontiguousarray(data))
        position = self.position(name, start, len(view))
        file = self._files[self._places[name].file]
        with self._failures():
            file.write(view, position)
            self._flush_soon(file, position, len(view))
        self.count(name, len(view))

    def put_rows(self, name: str, starts: np.ndarray, rows: np.ndarray) -> None:
        """Writes each row of `rows`, which are in row-major order, at its own flat element offset of the tensor."""
        aval = self._places[name].aval
        dtype = numpy_dtype(aval.dtype, path=self._destination, tensor=name)
        assert rows.dtype == dtype and rows.flags.c_contiguous, f"'{name}' is {aval}, the data are {rows.dtype}"
        if not rows.size:
            return
        view = byte_view(rows)
        nbytes = len(view) // len(rows)
        first, last = (self.position(name, int(at), nbytes) for at in (starts.min(), starts.max()))
        offsets = ((starts - starts.min()) * aval.dtype.bits // 8 + first).tolist()
        file = self._files[self._places[name].file]
        with self._failures():
            file.write_rows(view, offsets, nbytes)
            if last - first < len(view):  # they lie one after the other
                self._flush_soon(file, first, last + nbytes - first)
        self.count(name, len(view))

    def copy(self, name: str, start: int, run: FileRun) -> None:
        """Copies the bytes of `run` to flat element offset `start` of the tensor, by the operating system if it can."""
        position = self.position(name, start, run.nbytes)
        file = self._files[self._places[name].file]
        with self._failures(f" from {run.file.name}"):
            file.copy(run.file, run.offset, position, run.nbytes)
            self._flush_soon(file, position, run.nbytes)
        self.count(name, run.nbytes)

    def position(self, name: str, start: int, nbytes: int) -> int:
        """The byte offset of element `start` in the tensor's file, where `nbytes` bytes have room."""
        aval, _, offset = self._places[name]
        first, odd = divmod(start * aval.dtype.bits, 8)
        assert not odd and 0 <= first <= first + nbytes <= aval.nbytes, f"'{name}' is {aval}: {nbytes} bytes at {start}"
        return offset + first

    def count(self, name: str, nbytes: int) -> None:
        """Notes bytes of a tensor that are where they belong."""
        with self._lock:
            self._written[name] += nbytes

    def keep(self, name: str, count: int) -> None:
        """Notes elements of a tensor that are where they belong."""
        self.count(name, count * self._places[name].aval.dtype.bits // 8)

    def check_complete(self) -> None:
        """Raises StoreError while bytes are missing."""
        for name, (aval, _, _) in self._places.items():
            if self._written[name] != aval.nbytes:
                done = f"{self._written[name]} of {aval.nbytes} bytes were written"
                problem = f"{done}: a fault of this program; nothing was published"
                raise StoreError(self._destination, problem, tensor=name)

    def close(self) -> None:
        """Closes all files. May be called twice."""
        for file in self._files:
            file.close()

    def _flush_soon(self, file: NewFile, position: int, nbytes: int) -> None:
        if self._flush:
            file.begin_flush(position, nbytes)

    def _failures(self, more: str = ""):
        return os_failures(self._destination, f"write the partial output{more}")
