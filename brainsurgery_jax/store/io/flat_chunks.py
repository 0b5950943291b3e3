"""Tensors in flat pieces: each holds consecutive elements in row-major order, across the ends of rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.index.boxes import Box, whole
from brainsurgery_jax.store.base import FileRun, Header, Source
from brainsurgery_jax.store.failures import no_tensor
from brainsurgery_jax.store.io.arrays import byte_view, empty_aligned, numpy_dtype
from brainsurgery_jax.store.io.box_reads import read_box
from brainsurgery_jax.store.io.forwarding import SourceOver

if TYPE_CHECKING:
    import numpy as np

PIECE = 8 << 20
"""Bytes that are read at a time and then put where they belong."""


class _Part(NamedTuple):
    """Elements `start` to `stop` of a piece, by its name in the other source."""

    key: str
    start: int
    stop: int


class FlatChunkedSource(SourceOver):
    """A checkpoint of which some tensors are put together from flat pieces that another source holds; see
    `base.Source`. `pieces` names those of each such tensor, in order."""

    def __init__(self, header: Header, source: Source, pieces: Mapping[str, Sequence[str]]):
        super().__init__(header, source)
        self._pieces = pieces
        sizes = source.header.tensors
        self._begins = {
            name: (0, *accumulate(sizes[key].aval.size for key in keys)) for name, keys in self._pieces.items()
        }

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        if name not in self._pieces:
            return self._source.read(self._known(name), box)
        shape, dtype = self.header.tensors[name].aval.shape, self._dtype(name)
        box = whole(shape) if box is None else box
        return read_box(shape, dtype, box, lambda view, start: self._fill(name, view, start))

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        if name not in self._pieces:
            return self._source.read_range(self._known(name), start, stop)
        result = empty_aligned((stop - start,), self._dtype(name))
        self._fill(name, byte_view(result), start)
        return result

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if they do not lie one after the other."""
        if name not in self._pieces:
            return self._source.file_run(self._known(name), start, stop)
        parts = list(self._parts(name, start, stop))
        return self._source.file_run(*parts[0]) if len(parts) == 1 else None

    def _fill(self, name: str, view: memoryview, start: int) -> None:
        size, done = self._dtype(name).itemsize, 0
        for key, first, last in self._parts(name, start, start + len(view) // size):
            for at in range(first, last, PIECE // size):
                data = byte_view(self._source.read_range(key, at, min(last, at + PIECE // size)))
                view[done : done + len(data)] = data
                done += len(data)

    def _parts(self, name: str, start: int, stop: int) -> Iterator[_Part]:
        begins = self._begins[name]
        while start < stop:
            at = bisect_right(begins, start) - 1
            end = min(stop, begins[at + 1])
            yield _Part(self._pieces[name][at], start - begins[at], end - begins[at])
            start = end

    def _known(self, name: str) -> str:
        if name not in self.header.tensors:
            raise no_tensor(self.header.path, name, self.header.tensors)
        return name

    def _dtype(self, name: str) -> np.dtype:
        return numpy_dtype(self.header.tensors[name].aval.dtype, path=self.header.path, tensor=name)
