"""Sweeps: a tensor is read once for many outputs that each take a part with gaps, such as a column of a matrix.

Reading one such part also reads the gaps between its rows, so thousands of columns would read their matrix thousands of
times. A sweep reads the matrix once, in boxes of whole rows, and computes the portion of every output in each box.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from brainsurgery_jax.engine.plan import segments
from brainsurgery_jax.engine.plan.footprint import elements_of, item_bytes, making_block, piece_bytes, worst_moment
from brainsurgery_jax.engine.plan.pieces import ElementRange, Piece, plan_pieces
from brainsurgery_jax.engine.plan.work import Passage, Put
from brainsurgery_jax.graph.expr import Expr, cuts_of, is_whole, operand_avals, walk
from brainsurgery_jax.index.boxes import Box, flat_range, whole
from brainsurgery_jax.index.moves import Axes


class Taker(NamedTuple):
    """A tensor that is computed in a sweep: where it is written, and its axes of the leaf."""

    put: Put
    axes: Axes


class Sweep(NamedTuple):
    """A leaf that is read once, box by box, and the tensors that are computed from it. `peak`: bytes of a box and of
    the tensors that are computed from it at the same time."""

    leaf: Expr
    boxes: tuple[Box, ...]
    takers: tuple[Taker, ...]
    peak: int


def sweeps(passages: Iterable[Passage]) -> list[Sweep]:
    """The sweeps that read less than computing each of these ranges of outputs separately."""
    groups: dict[Expr, list[Put]] = {}
    for passage in passages:
        put = passage.sinks[0]
        if isinstance(put, Put) and (leaf := _leaf_of(put.expr, passage.start, passage.stop)) is not None:
            groups.setdefault(leaf, []).append(put)
    found = (_sweep(leaf, puts) for leaf, puts in groups.items())
    return [sweep for sweep in found if sweep is not None]


def span_of(leaf: Expr, box: Box) -> ElementRange:
    """The elements of a box of a sweep, which is one run of the leaf."""
    run = flat_range(leaf.aval.shape, box)
    assert run is not None, "boxes of a sweep have no gaps"
    return ElementRange(*run)


def box_of(taker: Taker, leaf: Expr, box: Box) -> Box:
    """The box of a tensor that is computed from a box of the leaf."""
    spans = list(whole(taker.put.expr.aval.shape))
    for axis in _cut_axes(leaf, box):
        at = taker.axes[axis]
        assert at is not None
        spans[at] = box[axis]
    return tuple(spans)


def _cut_axes(leaf: Expr, box: Box) -> list[int]:
    return [axis for axis, (span, n) in enumerate(zip(box, leaf.aval.shape, strict=True)) if span != (0, n, 1)]


def _leaf_of(e: Expr, start: int, stop: int) -> Expr | None:
    """The leaf of which a tensor is a proper part; None if there is no single such leaf, or not all is computed."""
    if start != 0 or stop != e.aval.size or not e.is_call:
        return None
    if all(s.is_leaf and s.aval.size <= e.aval.size for s in e.srcs):
        return None
    nodes = list(walk([e]))
    leaves = [n for n in nodes if n.is_leaf]
    if len(leaves) != 1 or leaves[0].aval.size <= e.aval.size:
        return None
    streamed = all(n.is_leaf or n.is_const or (n.is_call and not is_whole(n)) for n in nodes)
    streamed = streamed and not any(cuts_of(n) for n in nodes)
    return leaves[0] if streamed else None


def _sweep(leaf: Expr, puts: Sequence[Put]) -> Sweep | None:
    boxes = tuple(segments.cut(whole(leaf.aval.shape), max(1, segments.LIMIT // item_bytes(leaf)), 0))
    span, cut = span_of(leaf, boxes[0]), _cut_axes(leaf, boxes[0])
    takers: list[Taker] = []
    alone = peak = 0
    for put in puts:
        taker = Taker(put, _axes(put.expr))
        if any(taker.axes[axis] is None for axis in cut):
            continue
        wanted = Piece(put.expr, 0, 0, box_of(taker, leaf, boxes[0]))
        order = plan_pieces([wanted])[1]
        if all(span.holds(piece) for piece in _read(order, leaf)):
            takers.append(taker)
            whole_box = Piece(put.expr, 0, 0, whole(put.expr.aval.shape))
            whole_order = order if len(boxes) == 1 else plan_pieces([whole_box])[1]
            alone += sum(map(elements_of, _read(whole_order, leaf)))
            peak = max(peak, worst_moment(order, piece_bytes, _making) + piece_bytes(wanted))
    if alone <= leaf.aval.size:
        return None
    return Sweep(leaf, boxes, tuple(takers), (span.stop - span.start) * item_bytes(leaf) + peak)


def _read(order: Iterable[tuple[Piece, Sequence[Piece]]], leaf: Expr) -> list[Piece]:
    return [piece for piece, _ in order if piece.expr is leaf]


def _making(piece: Piece) -> int:
    return making_block(piece.expr, prod(piece.shape))


def _axes(e: Expr) -> Axes:
    """The axes of a tensor that are axes of the one leaf below it."""
    found: dict[Expr, Axes | None] = {}
    for node in walk([e]):
        if node.is_leaf:
            found[node] = tuple(range(len(node.aval.shape)))
            continue
        places = _places(node)
        known = [
            tuple(None if at is None else places[number][at] for at in axes)
            for number, s in enumerate(node.srcs)
            if (axes := found[s]) is not None
        ]
        found[node] = _agree(known) if known else None
    axes = found[e]
    assert axes is not None, "a tensor with a leaf below it"
    return axes


def _agree(known: Sequence[Axes]) -> Axes:
    """The axes on which all operands agree."""
    return tuple(places[0] if len(set(places)) == 1 else None for places in zip(*known, strict=True))


def _places(e: Expr) -> tuple[Axes, ...]:
    """For each operand, where its axes are in the result."""
    avals = operand_avals(e)
    if e.moves is not None:
        return e.moves.axes(avals)
    keeps = e.kernel is not None and e.kernel.elementwise
    return tuple(tuple(at if keeps else None for at in range(len(aval.shape))) for aval in avals)
