"""Moves of moves: two that follow each other as one, so that a long chain costs as much as a single step."""

from __future__ import annotations

from brainsurgery_jax.index.boxes import Span1, compose, extent
from brainsurgery_jax.index.moves import Moves, Permute, Reshape, Slice, index_box
from brainsurgery_jax.index.take import Take
from brainsurgery_jax.select import Index

MOST_ENTRIES = 1 << 12
"""Entries of a composed `Take`: each of a thousand steps keeps its own list."""


def compose_moves(first: Moves, then: Moves) -> Moves | None:
    """The moves that do what `then` does to the result of `first`; None where no single kind does both."""
    match first, then:
        case Permute(inner), Permute(outer):
            return Permute(tuple(inner[axis] for axis in outer))
        case Reshape(), Reshape():
            return then
        case Slice(inner), Slice(outer):
            return Slice(_pick_again(inner, outer))
        case Take(axis, entries), Take(again, wanted) if axis == again and len(wanted) <= MOST_ENTRIES:
            return Take(axis, tuple(entries[n] for n in wanted))
    return None


def keeps_all(moves: Moves, shape: tuple[int, ...]) -> bool:
    """Whether moves give the tensor of this shape itself."""
    match moves:
        case Permute(order):
            return order == tuple(range(len(shape)))
        case Reshape(made):
            return made == shape
        case Slice(index):
            return index.full
    return False


def _pick_again(inner: Index, outer: Index) -> Index:
    """The index that picks `outer` out of what `inner` picked."""
    kept = [axis for axis in range(len(inner.source)) if axis not in inner.dropped]
    spans = list(index_box(inner))
    for axis, span in zip(kept, index_box(outer), strict=True):
        spans[axis] = _shorten(compose(spans[axis], span))
    dropped = sorted((*inner.dropped, *(kept[axis] for axis in outer.dropped)))
    starts, stops, steps = zip(*spans, strict=True) if spans else ((), (), ())
    return Index(starts, stops, steps, tuple(dropped), inner.source)


def _shorten(span: Span1) -> Span1:
    """A span in the form of an `Index`: without a step where it picks one element, at 0 where it picks none."""
    if (count := extent(span)) > 1:
        return span
    return (span[0], span[0] + 1, 1) if count else (0, 0, 1)
