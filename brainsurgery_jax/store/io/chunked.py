"""Tensors in pieces: each chunk is a box of its tensor, and is stored as a separate tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.index.boxes import Box, Span1, box_shape, cover, whole
from brainsurgery_jax.store.base import FileRun, Header, Source
from brainsurgery_jax.store.failures import no_tensor
from brainsurgery_jax.store.io.arrays import empty_aligned, numpy_dtype
from brainsurgery_jax.store.io.forwarding import SourceOver

if TYPE_CHECKING:
    import numpy as np


class TensorChunk(NamedTuple):
    """A piece of a tensor: what it is called in the source that keeps it, where it begins, and its shape."""

    key: str
    start: tuple[int, ...]
    shape: tuple[int, ...]


class ChunkedSource(SourceOver):
    """A checkpoint whose tensors are put together from those of another source; see `base.Source`. The chunks of a
    tensor cover it, and no two of them overlap."""

    def __init__(self, header: Header, source: Source, chunks: Mapping[str, Sequence[TensorChunk]]):
        super().__init__(header, source)
        self._chunks = chunks

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        chunks = self._of(name)
        if len(chunks) == 1:
            return self._source.read(chunks[0].key, box)
        box = whole(self.header.tensors[name].aval.shape) if box is None else box
        result = empty_aligned(box_shape(box), self._dtype(name))
        for chunk in chunks:
            inner, where = _overlap(box, chunk)
            if 0 not in box_shape(inner):
                result[where] = self._source.read(chunk.key, inner)
        return result

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        import numpy as np

        chunks = self._of(name)
        if len(chunks) == 1:
            return self._source.read_range(chunks[0].key, start, stop)
        parts = [self.read(name, box).reshape(-1) for box in cover(self.header.tensors[name].aval.shape, start, stop)]
        result = empty_aligned((stop - start,), self._dtype(name))
        return np.concatenate(parts, out=result) if parts else result

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if they do not lie one after the other."""
        shape = self.header.tensors[name].aval.shape
        for chunk in self._of(name):
            rows = box_shape(whole(chunk.shape))
            if rows[1:] != shape[1:]:
                continue
            size = self._source.header.tensors[chunk.key].aval.size
            first = chunk.start[0] * size // rows[0] if rows and rows[0] else 0
            if first <= start and stop <= first + size:
                return self._source.file_run(chunk.key, start - first, stop - first)
        return None

    def _of(self, name: str) -> Sequence[TensorChunk]:
        if name not in self._chunks:
            raise no_tensor(self.header.path, name, self._chunks)
        return self._chunks[name]

    def _dtype(self, name: str) -> np.dtype:
        return numpy_dtype(self.header.tensors[name].aval.dtype, path=self.header.path, tensor=name)


def _overlap(box: Box, chunk: TensorChunk) -> tuple[Box, tuple[slice, ...]]:
    """What of a box a chunk holds: which box of the chunk, and where in the result it goes."""
    spans = [_part(span, low, low + n) for span, low, n in zip(box, chunk.start, chunk.shape, strict=True)]
    return tuple(inner for inner, _ in spans), tuple(where for _, where in spans)


def _part(span: Span1, low: int, high: int) -> tuple[Span1, slice]:
    """The indices of a span from `low` to `high`, counted from `low`, and their places among all of the span."""
    start, stop, step = span
    first = max(0, -((start - low) // step))
    last = max(first, -((start - min(high, stop)) // step))
    begin = start + first * step - low
    return (begin, begin + (last - first - 1) * step + 1, step) if last > first else (0, 0, 1), slice(first, last)
