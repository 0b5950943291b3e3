"""Tensors in files whose elements do not lie row by row: Fortran order, transposes and slices as torch saves them;
numbers in the other byte order; conjugates and negatives that torch has noted by a flag. They are read by their
strides, few bytes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.index.boxes import Box, box_shape, cover, strides, whole
from brainsurgery_jax.store.base import FileRun, Fingerprint, Header, TensorInfo
from brainsurgery_jax.store.io.arrays import empty_aligned, numpy_dtype
from brainsurgery_jax.store.io.boxes import GROUP, NEAR
from brainsurgery_jax.store.io.byte_source import ByteSource
from brainsurgery_jax.store.io.files import File

if TYPE_CHECKING:
    import numpy as np

Fetch = Callable[[int, int], "np.ndarray"]
"""Elements `start` to `stop` as they lie in the file."""


SLAB = 32 << 20
"""Bytes collected together where a tensor is read in ranges, and kept for the next one."""


class Slab(NamedTuple):
    """Elements of a tensor from `begin` on, in row-major order."""

    name: str
    begin: int
    elements: np.ndarray


class Laid(NamedTuple):
    """How the elements of a tensor lie: `strides` in elements, none negative, and whether their bytes are swapped; and
    whether the tensor is the conjugate or the negative of what lies there."""

    strides: tuple[int, ...]
    swapped: bool = False
    conjugated: bool = False
    negated: bool = False

    def is_plain(self, shape: tuple[int, ...]) -> bool:
        """Whether they are stored in row-major order, in the byte order of this machine."""
        if self.swapped or self.conjugated or self.negated:
            return False
        apart = zip(shape, self.strides, strides(shape), strict=True)
        return 0 in shape or all(n == 1 or found == plain for n, found, plain in apart)

    def reach(self, shape: tuple[int, ...]) -> int:
        """How many elements of the file the tensor spans."""
        return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, self.strides, strict=True))


class StridedSource:
    """A checkpoint of tensors at byte offsets of files, those in `laid` not row by row; see `base.Source`."""

    def __init__(self, header: Header, files: Sequence[File], laid: Mapping[str, Laid]):
        self.header = header
        self._laid = {n: how for n, how in laid.items() if not how.is_plain(header.tensors[n].aval.shape)}
        spans = {name: _span(header.tensors[name], how) for name, how in self._laid.items()}
        self._bytes = ByteSource(replace(header, tensors={**header.tensors, **spans}), files)
        self._lock = Lock()
        self._slab: Slab | None = None

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far, gaps of strided reads included, headers not."""
        return self._bytes.bytes_read

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        how = self._laid.get(name)
        if how is None:
            return self._bytes.read(name, box)
        box = whole(self.header.tensors[name].aval.shape) if box is None else box
        return gather(self._fetch(name), how, box, self._dtype(name))

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        how = self._laid.get(name)
        if how is None:
            return self._bytes.read_range(name, start, stop)
        result = empty_aligned((stop - start,), self._dtype(name))
        with self._lock:
            slab = self._around(name, how, start, stop)
            result[...] = slab.elements[start - slab.begin : stop - slab.begin]
        return result

    def _around(self, name: str, how: Laid, start: int, stop: int) -> Slab:
        """The elements that are asked for, and more behind them: whoever reads a tensor block by block would else
        collect each block from the whole of the file."""
        slab = self._slab
        if slab is None or slab.name != name or start < slab.begin or slab.begin + len(slab.elements) < stop:
            shape, bits = self.header.tensors[name].aval.shape, self.header.tensors[name].aval.dtype.bits
            end = min(prod(shape), max(stop, start + SLAB * 8 // bits))
            self._slab = None  # let go before as much is made again
            slab = Slab(name, start, gather_range(self._fetch(name), how, shape, start, end, self._dtype(name)))
            self._slab = slab
        return slab

    def _fetch(self, name: str) -> Fetch:
        return lambda start, stop: self._bytes.read_range(name, start, stop)

    def _dtype(self, name: str) -> np.dtype:
        info = self.header.tensors[name]
        return numpy_dtype(info.aval.dtype, path=self.header.files[info.file], tensor=name)

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if they do not lie one after the other."""
        return None if name in self._laid else self._bytes.file_run(name, start, stop)

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the files that are read."""
        return self._bytes.fingerprint

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file was replaced, resized or written to since it was opened."""
        self._bytes.verify_unchanged()

    def close(self) -> None:
        """Gives descriptors and what is kept back."""
        self._slab = None
        self._bytes.close()


def _span(info: TensorInfo, how: Laid) -> TensorInfo:
    """All that a tensor spans in its file, as one row."""
    return info._replace(aval=Aval((how.reach(info.aval.shape),), info.aval.dtype))


def gather_range(fetch: Fetch, how: Laid, shape: tuple[int, ...], start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """Elements `start` to `stop` in row-major order of a tensor that is stored in another order."""
    import numpy as np

    parts = [gather(fetch, how, box, dtype).reshape(-1) for box in cover(shape, start, stop)]
    if len(parts) == 1:
        return parts[0]
    joined = empty_aligned((stop - start,), dtype)
    return np.concatenate(parts, out=joined) if parts else joined


def gather(fetch: Fetch, how: Laid, box: Box, dtype: np.dtype) -> np.ndarray:
    """A box of a tensor, its elements gathered row by row in new memory."""
    import numpy as np

    result = empty_aligned(box_shape(box), dtype)
    origin = sum(first * stride for (first, _, _), stride in zip(box, how.strides, strict=True))
    pitch = tuple(stride * step for stride, (_, _, step) in zip(how.strides, box, strict=True))
    if result.size:
        _collect(fetch, result, origin, pitch)
    if how.swapped:
        result.byteswap(inplace=True)
    if how.conjugated:
        np.conjugate(result, out=result)
    return np.negative(result, out=result) if how.negated else result


def _collect(fetch: Fetch, result: np.ndarray, origin: int, pitch: tuple[int, ...]) -> None:
    """Fills the result, in halves as long as it spans much, or has rows far apart: gaps are read only if small."""
    import numpy as np

    reach = [(n - 1) * p for n, p in zip(result.shape, pitch, strict=True)]
    span = 1 + sum(reach)
    axis = max(range(len(reach)), key=reach.__getitem__, default=0)
    if span > 1 and (span * result.itemsize > GROUP or pitch[axis] * result.itemsize > NEAR):
        half = result.shape[axis] // 2
        before, after = ((slice(None),) * axis + (part,) for part in (slice(half), slice(half, None)))
        _collect(fetch, result[before], origin, pitch)
        _collect(fetch, result[after], origin + half * pitch[axis], pitch)
        return
    elements = fetch(origin, origin + span)
    steps = tuple(p * result.itemsize for p in pitch)
    result[...] = np.ndarray(result.shape, result.dtype, buffer=elements, strides=steps)
