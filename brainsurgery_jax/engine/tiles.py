"""Tensors that are made in boxes instead of flat blocks, because ops below them put axes in another order.

A flat block of a transposed matrix needs a part of every row, so that reading block by block would read all of the
matrix for each. A box that covers a whole source needs that source once: a stack of transposed layers is made layer by
layer, each written in rows at its place, and is never held as a whole. Boxes follow from shape and dtype alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from brainsurgery_jax._lazy import np
from brainsurgery_jax.boxes import Box, box_shape, contiguous_from, flat_range, strides, whole
from brainsurgery_jax.engine.footprint import item_bytes
from brainsurgery_jax.engine.segments import Segment, mixes
from brainsurgery_jax.graph.expr import Expr, asked_of, is_whole
from brainsurgery_jax.moves import Concat, Permute, Reshape
from brainsurgery_jax.protocol import Pending

LIMIT = 32 << 20
"""Bytes of a box: what is read for it is held once more, in two orders."""


def is_tiled(s: Segment) -> bool:
    """Whether a segment is made in boxes: all of a tensor with axes in another order below it."""
    return s.run is None and s.start == 0 and s.stop == s.expr.aval.size and mixes(s.expr)


def boxes_to_ask(question: Pending) -> list[Box]:
    """The boxes in which the tensors of a question are looked at; none where they go by in flat blocks."""
    mixed = [e for e in asked_of(question) if mixes(e)] if question.reduction.unordered else []
    return list(tiles(mixed[0])) if mixed else []


def tiles(e: Expr) -> Iterator[Box]:
    """Boxes that make up a tensor: one for each source that is joined in it, large ones cut."""
    for box in _natural(e):
        yield from cut(box, max(1, LIMIT // item_bytes(e)), 0)


def _natural(e: Expr) -> list[Box]:
    """A box for each of the tensors that are joined in this one."""
    if e.kind == "call" and not is_whole(e):
        assert e.kernel is not None
        if isinstance(e.moves, Concat):
            return list(_joined(e, e.moves.axis))
        if isinstance(e.moves, Permute):
            order = e.moves.order
            return [tuple(box[axis] for axis in order) for box in _natural(e.srcs[0])]
        if isinstance(e.moves, Reshape) and _sizes(e.aval.shape) == _sizes(e.srcs[0].aval.shape):
            return [_reshaped(box, e.srcs[0].aval.shape, e.aval.shape) for box in _natural(e.srcs[0])]
        if e.kernel.elementwise and len(e.srcs) == 1:
            return _natural(e.srcs[0])
    return [whole(e.aval.shape)]


def _joined(e: Expr, axis: int) -> Iterator[Box]:
    offset = 0
    for src in e.srcs:
        for box in _natural(src):
            start, stop, step = box[axis]
            yield (*box[:axis], (start + offset, stop + offset, step), *box[axis + 1 :])
        offset += src.aval.shape[axis]


def _sizes(shape: Sequence[int]) -> list[int]:
    """The sizes that are not 1: axes of one element come and go without moving anything."""
    return [n for n in shape if n != 1]


def _reshaped(box: Box, before: Sequence[int], after: Sequence[int]) -> Box:
    spans = iter([span for span, n in zip(box, before, strict=True) if n != 1])
    return tuple((0, 1, 1) if n == 1 else next(spans) for n in after)


def cut(box: Box, most: int, axis: int) -> Iterator[Box]:
    """The box, or parts of it of at most so many elements, cut along the first axes."""
    size = prod(box_shape(box))
    if size <= most or axis == len(box):
        yield box
        return
    start, stop, _ = box[axis]
    rows = max(1, most * (stop - start) // size)
    for first in range(start, stop, rows):
        part = (*box[:axis], (first, min(stop, first + rows), 1), *box[axis + 1 :])
        yield from cut(part, most, axis + 1)


def rows(shape: Sequence[int], box: Box, array: Any) -> tuple[Any, Any]:
    """The runs that a box is in a tensor of that shape: where each begins, and its elements, a row each."""
    axis = contiguous_from(shape, box)
    inner = flat_range(shape[axis:], box[axis:])
    assert inner is not None
    starts = np.full((), inner[0])
    for (start, stop, step), stride in zip(box[:axis], strides(shape), strict=False):
        starts = starts[..., None] + np.arange(start, stop, step) * stride
    return starts.reshape(-1), array.reshape(starts.size, -1)
