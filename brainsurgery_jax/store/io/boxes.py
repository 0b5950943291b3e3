"""Which byte runs of a row-major tensor a box needs, and how they are read in few calls and little memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

from brainsurgery_jax.index.boxes import Box, box_shape, contiguous_from, strides

NEAR = 64 << 10
"""Rows that start at most this many bytes apart are read together: the gap costs less than a call."""

GROUP = 8 << 20
"""Bytes read together at most, hence the extra memory of a strided read."""


class BoxRead(NamedTuple):
    """One read: elements `start` to `start + length` of the tensor go to `result[where]`.

    If `strides` is None they are exactly these elements; else the elements wanted lie `strides` (in elements) apart.
    """

    start: int
    length: int
    where: tuple[int | slice, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None


def pieces(shape: tuple[int, ...], box: Box, itemsize: int) -> Iterator[BoxRead]:
    """The reads that fill a result of the box's shape; none if it is empty."""
    size = box_shape(box)
    assert all(0 <= a <= b <= n and s >= 1 for (a, b, s), n in zip(box, shape, strict=True)), (shape, box)
    if 0 in size:
        return
    apart = strides(shape)
    pitch = tuple(stride * step for stride, (_, _, step) in zip(apart, box, strict=True))
    origin = sum(start * stride for (start, _, _), stride in zip(box, apart, strict=True))
    run, near = contiguous_from(shape, box), _near(pitch, itemsize)
    for index in product(*map(range, size[: min(run, near)])):
        start = origin + sum(i * p for i, p in zip(index, pitch, strict=False))
        if run <= near:
            yield BoxRead(start, prod(size[run:]), index, size[run:], None)
        else:
            yield from _groups(start, index, size[near:], pitch[near:], itemsize)


def elements_read(shape: tuple[int, ...], box: Box, itemsize: int) -> int:
    """How many elements the reads of a box bring at most, gaps included."""
    size = box_shape(box)
    if 0 in size:
        return 0
    pitch = tuple(stride * step for stride, (_, _, step) in zip(strides(shape), box, strict=True))
    run, near = contiguous_from(shape, box), _near(pitch, itemsize)
    if run <= near:
        return prod(size)
    return prod(size[:near]) * (1 + sum((n - 1) * p for n, p in zip(size[near:], pitch[near:], strict=True)))


def _near(pitch: tuple[int, ...], itemsize: int) -> int:
    """The first axis whose rows are read together."""
    return next((axis for axis, p in enumerate(pitch) if p * itemsize <= NEAR), len(pitch))


def _groups(
    start: int, index: tuple[int, ...], size: tuple[int, ...], pitch: tuple[int, ...], itemsize: int
) -> Iterator[BoxRead]:
    """Near rows along the first axis of `size`, read together with the gaps between them."""
    rows = max(1, GROUP // (pitch[0] * itemsize))
    for first in range(0, size[0], rows):
        shape = (min(rows, size[0] - first), *size[1:])
        length = 1 + sum((n - 1) * p for n, p in zip(shape, pitch, strict=True))
        yield BoxRead(start + first * pitch[0], length, (*index, slice(first, first + shape[0])), shape, pitch)
