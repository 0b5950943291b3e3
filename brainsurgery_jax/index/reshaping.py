"""Boxes of reshaped tensors: where axes are split or joined, a box of the one shape may be a box of the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from brainsurgery_jax.index.boxes import Box, cover, flat_range


def box_before(before: Sequence[int], after: Sequence[int], box: Box) -> Box | None:
    """The box of a tensor of the shape `before` that has the elements of a box of `after`, in the same order; None if
    there is no such box, and for tensors without elements."""
    if 0 in before:
        return None
    found: list[tuple[int, int, int]] = []
    for old, new in _groups(before, after):
        if len(old) == len(new) == 1:
            found.append(box[new.start])
            continue
        run = flat_range(after[new.start : new.stop], box[new.start : new.stop])
        covers = [] if run is None else list(cover(before[old.start : old.stop], *run))
        if len(covers) != 1:
            return None
        found += covers[0]
    return tuple(found)


def _groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The shortest runs of axes of both shapes that hold equally many elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        first, start = i, j
        old, i = (before[i], i + 1) if i < len(before) else (1, i)
        new, j = (after[j], j + 1) if j < len(after) else (1, j)
        while old != new:
            if old < new:
                old, i = old * before[i], i + 1
            else:
                new, j = new * after[j], j + 1
        yield range(first, i), range(start, j)
