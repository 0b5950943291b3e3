"""How a tensor is passed: as byte runs of files that are copied as they are, and as ranges that are computed in flat
blocks, or in boxes where ops below them permute axes.

A flat block of a transposed matrix needs a part of every row, so each block would read the whole matrix. A box that
covers a whole source reads that source once: a stack of transposed layers is computed layer by layer, each layer is
written in rows at its place, and the stack is never held whole. A kernel with `parts` is computed in these parts.
Segments, blocks and boxes follow from shape and dtype alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple, TypeVar

from brainsurgery_jax.engine.plan.blocks import cuts
from brainsurgery_jax.engine.plan.footprint import item_bytes
from brainsurgery_jax.graph.expr import Expr, asked_of, cuts_of, is_whole, operand_avals
from brainsurgery_jax.index.boxes import Box, box_shape, flat_range, whole
from brainsurgery_jax.index.moves import Moves, Run
from brainsurgery_jax.index.parts import parts
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.base import FileRun

T = TypeVar("T")

FEWEST = 4
"""Parts that a sample is taken of, at least."""

PARTS = 16
"""Parts of which a sample is taken of one, if there are many."""

LIMIT = 32 << 20
"""Bytes of a box, which is held twice: as it was read, and reordered."""


class Segment(NamedTuple):
    """Elements of an output from `at` on: a run of bytes in a file, or elements `start:stop` of an expression."""

    at: int
    run: FileRun | None
    expr: Expr
    start: int
    stop: int


def segments(root: Expr) -> Iterator[Segment]:
    """The segments of a tensor, in row-major order. Structural ops are unfolded from the root down to the leaves."""
    stack: list[tuple[Expr, int, int, int]] = [(root, 0, root.aval.size, 0)]
    while stack:
        e, start, stop, at = stack.pop()
        if start >= stop:
            continue
        if e.is_leaf:
            yield Segment(at, e.source.file_run(e.name, start, stop), e, start, stop)
            continue
        runs = e.moves.runs(tuple(s.aval for s in e.srcs), start, stop) if e.moves is not None else None
        if runs is None or (stop - start == e.aval.size and _is_scattered(e, runs)):
            yield Segment(at, None, e, start, stop)
            continue
        inner = []
        for run in runs:
            inner.append((e.srcs[run.src], run.start, run.stop, at))
            at += run.stop - run.start
        stack.extend(reversed(inner))


def _is_scattered(e: Expr, runs: Sequence[Run]) -> bool:
    """Whether a tensor has operands with permuted axes, so that boxes are cheaper than blocks."""
    return any(r.stop - r.start != e.srcs[r.src].aval.size for r in runs) and mixes(e)


def mixes(e: Expr) -> bool:
    """Whether any operand of a block of `e` permutes axes, or is computed in its own parts."""
    return any(_mixes(node) for node in walk_streamed(e))


def _mixes(e: Expr) -> bool:
    return cuts_of(e) is not None if e.moves is None else e.moves.mixes(operand_avals(e))


def walk_streamed(e: Expr) -> Iterator[Expr]:
    """The calls that compute a block of a tensor, down to leaves and arrays that are held whole."""
    seen: set[Expr] = set()
    stack = [e]
    while stack:
        node = stack.pop()
        if node in seen or not node.is_call or is_whole(node):
            continue
        seen.add(node)
        yield node
        stack.extend(node.srcs)


# --- Boxes ------------------------------------------------------------------------------------------------------------


def is_tiled(e: Expr, start: int, stop: int) -> bool:
    """Whether a range of a tensor is computed in boxes: it is all of a tensor with permuted axes below it."""
    return start == 0 and stop == e.aval.size and mixes(e)


def boxes_to_ask(question: Pending) -> list[Box]:
    """The boxes in which a question reads its tensors; none if it reads flat blocks."""
    mixed = [e for e in asked_of(question) if mixes(e)]
    if not mixed:
        return []
    boxes = list(tiles(mixed[0]))
    in_order = has_parts(mixed[0]) and _follow(mixed[0].aval.shape, boxes)
    return _choose_parts(question, boxes) if question.reduction.unordered or in_order else []


def blocks_to_ask(question: Pending) -> list[tuple[int, int]]:
    """The blocks in which a question reads its tensors, if not in boxes."""
    return _choose_parts(question, list(cuts(0, asked_of(question)[0].aval.size)))


def _choose_parts(question: Pending, parts: list[T]) -> list[T]:
    """The parts of tensors that a question needs: of a sampled one some, at equal distances."""
    if not question.reduction.sampled:
        return parts
    count = min(len(parts), max(FEWEST, len(parts) // PARTS))
    return [parts[(2 * at + 1) * len(parts) // (2 * count)] for at in range(count)]


def _follow(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Whether boxes are runs of a tensor, one after the other."""
    runs = [flat_range(shape, box) for box in boxes]
    ends = [0, *(run[1] for run in runs if run is not None)]
    return len(ends) == len(runs) + 1 and all(run[0] == end for run, end in zip(runs, ends, strict=False) if run)


def has_parts(e: Expr) -> bool:
    """Whether any node below a tensor is computed in parts."""
    return any(cuts_of(node) is not None for node in walk_streamed(e))


def tiles(e: Expr) -> Iterator[Box]:
    """Boxes that cover a tensor: one for each joined source, cut if it is large, or the parts of a node that is
    computed in parts."""
    for tile in _natural(e):
        yield from (tile.box,) if tile.is_part else cut(tile.box, max(1, LIMIT // item_bytes(e)), 0)


class Tile(NamedTuple):
    """A box, and whether it is a part of a node that is computed in parts."""

    box: Box
    is_part: bool = False


def _natural(e: Expr) -> list[Tile]:
    """A box for each tensor that is joined in this one, or for each part."""
    passed: list[Expr] = []  # what moves elements of one tensor, on the way down: there may be thousands
    while (below := _below(e)) is not None:
        if e.moves is not None and _keeps_boxes(e, e.moves):
            passed.append(e)
        e = below
    tiles = _tiles_here(e)
    for mover in reversed(passed):
        tiles = [tile._replace(box=_place(mover, 0, tile.box)) for tile in tiles]
    return tiles


def _below(e: Expr) -> Expr | None:
    """The one node whose boxes are those of this one; None if there are several, or none."""
    if not e.is_call or is_whole(e) or cuts_of(e) is not None:
        return None
    assert e.kernel is not None
    if e.moves is not None and _keeps_boxes(e, e.moves):
        return e.srcs[0] if len(e.srcs) == 1 else None
    if not e.kernel.elementwise:
        return None
    return e.srcs[0] if len(e.srcs) == 1 else next((s for s in e.srcs if has_parts(s)), None)


def _tiles_here(e: Expr) -> list[Tile]:
    """The boxes of a node which has no single one below to take them from."""
    if e.is_call and not is_whole(e):
        if (cuts := cuts_of(e)) is not None:
            return [Tile(box, True) for box in parts(e.aval.shape, cuts)]
        if e.moves is not None and _keeps_boxes(e, e.moves):
            inner = ((number, tile) for number, src in enumerate(e.srcs) for tile in _natural(src))
            return [tile._replace(box=_place(e, number, tile.box)) for number, tile in inner]
    return [Tile(whole(e.aval.shape))]


def _keeps_boxes(e: Expr, moves: Moves) -> bool:
    """Whether the result has a box for each box of an operand."""
    avals = operand_avals(e)
    return all(moves.place(avals, n, whole(src.aval.shape)) is not None for n, src in enumerate(e.srcs))


def _place(e: Expr, number: int, box: Box) -> Box:
    """The box of the result where a box of an operand goes."""
    assert e.moves is not None
    place = e.moves.place(operand_avals(e), number, box)
    assert place is not None, "as all of the operand does"
    return place


def cut(box: Box, most: int, axis: int) -> Iterator[Box]:
    """The box, cut along its first axes into parts of at most this many elements."""
    size = prod(box_shape(box))
    if size <= most or axis == len(box):
        yield box
        return
    start, stop, _ = box[axis]
    rows = max(1, most * (stop - start) // size)
    for first in range(start, stop, rows):
        part = (*box[:axis], (first, min(stop, first + rows), 1), *box[axis + 1 :])
        yield from cut(part, most, axis + 1)
