"""Entries of one axis by their numbers, as index arithmetic: which ranges and boxes of the input they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.index import moves
from brainsurgery_jax.index.boxes import Box, Span1, box_shape, extent, whole, with_span
from brainsurgery_jax.index.moves import Axes, Moves, Part, Run, clip, itemsize

if TYPE_CHECKING:
    import numpy as np

TOGETHER = 32 << 20
"""Bytes: no more than this is read at a time of what lies between entries that are taken one by one."""

MOST_ENTRIES = 1 << 20
"""So many entries are looked at, at most, to find those that lie together."""


@dataclass(frozen=True, slots=True)
class Take(Moves):
    """Entries of one axis by their numbers, in any order, each as often as it is named. `entries` can be hashed."""

    axis: int
    entries: Sequence[int]

    def aval(self, avals: tuple[Aval, ...]) -> Aval:
        shape = avals[0].shape
        return Aval((*shape[: self.axis], len(self.entries), *shape[self.axis + 1 :]), avals[0].dtype)

    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None:
        if start >= stop:
            return []
        shape = avals[0].shape
        row = prod(shape[self.axis + 1 :])
        made = len(self.entries) * row  # of each row before the axis
        first, last = start // made, (stop - 1) // made
        low, high = ((start % made) // row, (stop - 1) % made // row + 1) if first == last else (0, len(self.entries))
        if high - low > MOST_ENTRIES and row * itemsize(avals[0]) < moves.LEAST_RUN:
            return None
        ranges = list(_ranges(self.entries[low:high]))
        count = len(ranges) * (last + 1 - first)
        if count > 1 and (stop - start) * itemsize(avals[0]) < count * moves.LEAST_RUN:
            return None
        bases = range(first * shape[self.axis] * row, (last + 1) * shape[self.axis] * row, shape[self.axis] * row)
        pieces = (Run(0, base + a * row, base + b * row) for base in bases for a, b in ranges)
        skipped = first * made + low * row
        return clip(pieces, start - skipped, stop - skipped)

    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        within = whole(box_shape(box))
        inner = prod(box_shape(box[self.axis + 1 :])) * itemsize(avals[0])
        chunks = _chunks(self.entries, box[self.axis], inner)
        rows = prod(box_shape(box[: self.axis]))
        if any(c.high - c.low > c.wanted and (c.high - c.low) * inner * rows > TOGETHER for c in chunks):
            return self._in_halves(avals, box)
        out, at = [], 0
        for c in chunks:
            source = with_span(box, self.axis, (c.low, c.high, 1))
            place = with_span(within, self.axis, (at, at + c.wanted, 1))
            out.append(Part(0, source, place, c.picks))
            at += c.wanted
        return out

    def _in_halves(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        axis = next(a for a, span in enumerate(box) if extent(span) > 1)
        start, stop, step = box[axis]
        half = extent(box[axis]) // 2
        left = self.parts(avals, with_span(box, axis, (start, start + (half - 1) * step + 1, step)))
        right = self.parts(avals, with_span(box, axis, (start + half * step, stop, step)))
        return [*left, *(p._replace(at=with_span(p.at, axis, _shift(p.at[axis], half))) for p in right)]

    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray:
        return piece.take(part.picks, self.axis) if part.picks else piece

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        return (tuple(at if at != self.axis else None for at in range(len(avals[0].shape))),)


def _ranges(entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges that consecutive entries make."""
    start = 0
    for at in range(1, len(entries) + 1):
        if at == len(entries) or entries[at] != entries[at - 1] + 1:
            yield entries[start], entries[at - 1] + 1
            start = at


class Cluster(NamedTuple):
    """Entries `low:high`, of which so many are wanted: number `picks` of them, or just these."""

    low: int
    high: int
    wanted: int
    picks: tuple[int, ...]


@lru_cache(maxsize=64)
def _chunks(entries: Sequence[int], span: Span1, inner: int) -> tuple[Cluster, ...]:
    """The wanted entries in the order named, each chunk to be read together with what lies between, `inner` bytes an
    entry in each row: that is cheaper than a seek. (Cached, since every block of a matrix asks the same.)"""
    wanted = tuple(entries[slice(*span)])
    cuts = [0, *_jumps(wanted, moves.LEAST_RUN // max(1, inner)), len(wanted)]
    if (max(wanted) + 1 - min(wanted)) * inner <= (len(cuts) - 1) * moves.LEAST_RUN:
        cuts = [0, len(wanted)]  # all at once is cheaper than a seek for each
    return tuple(_chunk(wanted[a:b]) for a, b in pairwise(cuts))


def _chunk(wanted: tuple[int, ...]) -> Cluster:
    low, high = min(wanted), max(wanted) + 1
    plain = wanted == tuple(range(low, high))
    return Cluster(low, high, len(wanted), () if plain else tuple(n - low for n in wanted))


def _jumps(entries: Sequence[int], most: int) -> Iterator[int]:
    """Where entries leave, by more than so many, what those before them span."""
    low, high = entries[0], entries[0] + 1
    for at, n in enumerate(entries):
        lower, higher = min(low, n), max(high, n + 1)
        if higher - lower - (high - low) > most:
            yield at
            lower, higher = n, n + 1
        low, high = lower, higher


def _shift(span: Span1, by: int) -> Span1:
    return span[0] + by, span[1] + by, span[2]
