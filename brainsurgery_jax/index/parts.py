"""Parts of a result that are made independently: along which axes it is cut, and which part of each operand goes into
one. Index arithmetic, from shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from brainsurgery_jax.index.boxes import Box, Span1, whole

PIECE = 1 << 18
"""Elements that numpy computes at a time, where a kernel takes any: few enough that what it makes stays in the cache,
and so many that calls of numpy take no time."""


class AxisCut(NamedTuple):
    """A cut of a result along one of its axes, into equal units; a part has `step` of them, the last one the rest.

    `operands`: the axis along which each operand is cut as well, into as many units; None: it is needed whole.
    """

    axis: int
    units: int
    step: int
    operands: tuple[int | None, ...]


Cuts = tuple[AxisCut, ...]


def parts(shape: Sequence[int], cuts: Cuts) -> Iterator[Box]:
    """The parts that make up a result, in row-major order."""
    yield from _boxes(shape, cuts, [range(0, cut.units, cut.step) for cut in cuts])


def part_sizes(shape: Sequence[int], cuts: Cuts) -> Counter[int]:
    """How many parts have so many elements."""
    found = Counter({prod(shape): 1})
    for cut in cuts:
        full, rest = divmod(cut.units, cut.step)
        counts = Counter[int]()
        for size, count in found.items():
            each = size // cut.units
            counts[each * cut.step] += full * count
            if rest:
                counts[each * rest] += count
        found = counts
    return +found


def parts_around(shape: Sequence[int], cuts: Cuts, box: Box) -> list[Box]:
    """The parts that a box has elements of."""
    starts = []
    for cut in cuts:
        first, stop, step = box[cut.axis]
        width = shape[cut.axis] // cut.units * cut.step
        last = range(first, stop, step)[-1]
        starts.append(range(first // width * cut.step, last // width * cut.step + 1, cut.step))
    return list(_boxes(shape, cuts, starts))


def is_part(shape: Sequence[int], cuts: Cuts, box: Box) -> bool:
    """Whether a box is one of the parts."""
    steps = {cut.axis: shape[cut.axis] // cut.units * cut.step for cut in cuts}
    for axis, (size, span) in enumerate(zip(shape, box, strict=True)):
        width, start = steps.get(axis), span[0]
        if width is None and span != (0, size, 1):
            return False
        if width is not None and (start not in range(0, size, width) or span != (start, min(start + width, size), 1)):
            return False
    return True


def _boxes(shape: Sequence[int], cuts: Cuts, starts: Sequence[range]) -> Iterator[Box]:
    for first in product(*starts):
        box = list(whole(shape))
        for cut, at in zip(cuts, first, strict=True):
            box[cut.axis] = _span(shape[cut.axis], cut.units, at, min(at + cut.step, cut.units))
        yield tuple(box)


def operand_box(shape: Sequence[int], cuts: Cuts, box: Box, operand: int, of: Sequence[int]) -> Box:
    """The part of operand number `operand`, of shape `of`, that goes into a part of the result."""
    made = list(whole(of))
    for cut in cuts:
        if (axis := cut.operands[operand]) is not None:
            start, stop = units_in(shape, cut, box)
            made[axis] = _span(of[axis], cut.units, start, stop)
    return tuple(made)


def units_in(shape: Sequence[int], cut: AxisCut, box: Box) -> tuple[int, int]:
    """The first unit of a part, and the one after its last."""
    start, stop, _ = box[cut.axis]
    size = shape[cut.axis] // cut.units
    return start // size, stop // size


def _span(size: int, units: int, start: int, stop: int) -> Span1:
    each = size // units
    return start * each, stop * each, 1
