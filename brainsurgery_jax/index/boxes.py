"""Boxes of row-major tensors: the index arithmetic that stores, moves and the engine share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd, prod

Span1 = tuple[int, int, int]
Box = tuple[Span1, ...]
"""`(start, stop, step)` per dimension; `0 <= start <= stop <= dim` and `step >= 1`."""


def whole(shape: Sequence[int]) -> Box:
    """The box that is all of `shape`."""
    return tuple((0, n, 1) for n in shape)


def extent(span: Span1) -> int:
    """How many indices `span` selects."""
    return len(range(*span))


def box_shape(box: Box) -> tuple[int, ...]:
    """The shape of what `box` selects."""
    return tuple(extent(s) for s in box)


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def contiguous_from(shape: Sequence[int], box: Box) -> int:
    """The first axis from which on the box is one run: single indices, then one range, then whole dimensions."""
    axis, full = len(shape), True
    while axis:
        start, stop, step = box[axis - 1]
        if extent(box[axis - 1]) == 1:
            full = full and shape[axis - 1] == 1
        elif full and step == 1:
            full = stop - start == shape[axis - 1]
        else:
            break
        axis -= 1
    return axis


def flat_range(shape: Sequence[int], box: Box) -> tuple[int, int] | None:
    """The flat range that `box` is in a row-major array of `shape`, or None if it has gaps; (0, 0) if it is empty."""
    first, count, stride = 0, 1, 1
    may_grow, has_gaps = True, False  # from the last axis on: whole dimensions, then one range, then single indices
    for size, (start, stop, step) in zip(reversed(shape), reversed(box), strict=True):
        picked = stop - start if step == 1 else len(range(start, stop, step))
        if picked != 1:
            has_gaps |= not may_grow or (step != 1 and picked != 0)
        may_grow = may_grow and picked == size
        first += start * stride
        count *= picked
        stride *= size
    if not count:
        return 0, 0
    return None if has_gaps else (first, first + count)


def cover(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Boxes that make up the flat range `start:stop` of `shape`, in row-major order; at most 2 * rank - 1 of them."""
    if start >= stop:
        return
    if not shape:
        yield ()
        return
    row = prod(shape[1:])
    first, last = start // row, (stop - 1) // row
    if len(shape) > 1 and (start % row or (first == last and stop % row)):
        for inner in cover(shape[1:], start - first * row, min(stop - first * row, row)):
            yield ((first, first + 1, 1), *inner)
        yield from cover(shape, (first + 1) * row, stop)
    else:
        full = stop // row
        if full > first:
            yield ((first, full, 1), *whole(shape[1:]))
        yield from cover(shape, full * row, stop)


def compose(outer: Span1, inner: Span1) -> Span1:
    """The span that picks `inner` out of what `outer` picked."""
    count, start, step = extent(inner), outer[0] + inner[0] * outer[2], outer[2] * inner[2]
    return (start, start + (count - 1) * step + 1 if count else start, step)


def with_span(box: Box, axis: int, span: Span1) -> Box:
    """A box with another span along one axis."""
    return (*box[:axis], span, *box[axis + 1 :])


def meet(want: Span1, have: Span1) -> tuple[Span1, Span1] | None:
    """Where the picks of `want` fall on picks of `have`: (their places in want, their places in have), or None."""
    period = have[2] // gcd(want[2], have[2])
    picks = range(*want)
    first = next((k for k in range(min(period, len(picks))) if (picks[k] - have[0]) % have[2] == 0), None)
    if first is None:
        return None
    if picks[first] < have[0]:  # step forward to the start of `have`, staying on the common grid
        jump = want[2] * period
        first += -(-(have[0] - picks[first]) // jump) * period
    count = _count_below(picks, range(first, len(picks), period), have[1])
    if count <= 0:
        return None
    start = (picks[first] - have[0]) // have[2]
    step = max(1, want[2] * period // have[2])
    return (first, first + (count - 1) * period + 1, period), (start, start + (count - 1) * step + 1, step)


def _count_below(picks: range, hits: range, stop: int) -> int:
    """How many of `hits` (indices into `picks`, ascending) pick something below `stop`."""
    low, high = 0, len(hits)
    while low < high:
        mid = (low + high) // 2
        low, high = (mid + 1, high) if picks[hits[mid]] < stop else (low, mid)
    return low
