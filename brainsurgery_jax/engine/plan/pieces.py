"""Pieces of expressions: the pieces of its operands that a piece needs, and the order in which to compute them.

A piece is a flat range of a tensor, or a box if an op permutes axes or computes its result in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from brainsurgery_jax.graph.expr import Expr, cuts_of, is_whole, operand_avals
from brainsurgery_jax.index import parts
from brainsurgery_jax.index.boxes import Box, box_shape, cover, flat_range, strides
from brainsurgery_jax.index.parts import Cuts


class Piece(NamedTuple):
    """Elements `start:stop` of an expression in row-major order, or a box of it."""

    expr: Expr
    start: int
    stop: int
    box: Box | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start,) if self.box is None else box_shape(self.box)

    @property
    def is_view(self) -> bool:
        """Whether it is a box of an array that is held whole, and so a view of that array."""
        return self.box is not None and (self.expr.is_pick or is_whole(self.expr))


class ElementRange(NamedTuple):
    """Elements `start:stop` of a tensor in row-major order."""

    start: int
    stop: int

    def holds(self, piece: Piece) -> bool:
        """Whether the range contains a piece of the tensor."""
        first, last = range_of(piece)
        return self.start <= first and last <= self.stop


def range_of(piece: Piece) -> tuple[int, int]:
    """The flat range that a piece spans."""
    return (piece.start, piece.stop) if piece.box is None else span_flat(piece.expr.aval.shape, piece.box)


def plan_pieces(roots: Sequence[Piece]) -> tuple[dict[Piece, int], list[tuple[Piece, list[Piece]]]]:
    """How often each piece below the roots is used (a root once more), and the order of computation, operands first."""
    uses: dict[Piece, int] = {}
    order: list[tuple[Piece, list[Piece]]] = []
    for root in roots:
        stack: list[tuple[Piece, list[Piece] | None]] = [(root, None)]
        while stack:
            piece, needs = stack.pop()
            if needs is not None:
                order.append((piece, needs))
            elif piece not in uses:
                uses[piece] = 0
                needs = needs_of(piece)
                stack.append((piece, needs))
                stack.extend((n, None) for n in reversed(needs) if n not in uses)
    for piece in (*roots, *(n for _, needs in order for n in needs)):
        uses[piece] += 1
    return uses, order


def needs_of(piece: Piece) -> list[Piece]:
    """The pieces of its operands that a piece is computed from."""
    e = piece.expr
    if not e.is_call or is_whole(e):
        return []
    assert e.kernel is not None
    if e.kernel.elementwise:
        return [Piece(s, piece.start, piece.stop, piece.box) for s in e.srcs]
    if e.kernel.blocks or (e.moves is not None and e.moves.flat_only):
        return _flat_needs(piece)
    if (cuts := cuts_of(e)) is not None:
        return _needs_of_part(piece, cuts)
    assert e.moves is not None
    avals = tuple(s.aval for s in e.srcs)
    if piece.box is not None:
        return [Piece(e.srcs[p.src], 0, 0, p.box) for p in e.moves.parts(avals, piece.box)]
    if (runs := e.moves.runs(avals, piece.start, piece.stop)) is not None:
        return [Piece(e.srcs[r.src], r.start, r.stop) for r in runs]
    return [Piece(e, 0, 0, box) for box in cover(e.aval.shape, piece.start, piece.stop)]


def _needs_of_part(piece: Piece, cuts: Cuts) -> list[Piece]:
    """For a part, the same part of every operand; for any other box, the parts that it overlaps."""
    e, box = piece.expr, piece.box
    if box is None:
        return [Piece(e, 0, 0, part) for part in cover(e.aval.shape, piece.start, piece.stop)]
    if not parts.is_part(e.aval.shape, cuts, box):
        return [Piece(e, 0, 0, part) for part in parts.parts_around(e.aval.shape, cuts, box)]
    boxes = [parts.operand_box(e.aval.shape, cuts, box, at, s.aval.shape) for at, s in enumerate(e.srcs)]
    return [Piece(s, 0, 0, part) for s, part in zip(e.srcs, boxes, strict=True)]


def is_part(piece: Piece, cuts: Cuts) -> bool:
    """Whether a piece is one of the parts in which its tensor is computed."""
    return piece.box is not None and parts.is_part(piece.expr.aval.shape, cuts, piece.box)


def _flat_needs(piece: Piece) -> list[Piece]:
    """For ops that compute in row-major order only: a box with gaps is a box of the operand, else it is selected from
    the range that it spans."""
    e = piece.expr
    if piece.box is not None:
        source = reshaped_box(piece)
        return [Piece(e, *span_flat(e.aval.shape, piece.box)) if source is None else Piece(e.srcs[0], 0, 0, source)]
    return [Piece(s, piece.start, piece.stop) for s in e.srcs]


def reshaped_box(piece: Piece) -> Box | None:
    """The box of the operand that a box with gaps of a reshaped tensor is; None for what is not computed so."""
    e, box = piece.expr, piece.box
    if box is None or e.moves is None or not e.moves.flat_only or e.aval.dtype.bits < 8:  # packed ones lie in bytes
        return None
    if flat_range(e.aval.shape, box) is not None:
        return None
    return e.moves.box_before(operand_avals(e), box)


def span_flat(shape: Sequence[int], box: Box) -> tuple[int, int]:
    """The flat range from the first to the last element of a box."""
    if (run := flat_range(shape, box)) is not None:
        return run
    first = sum(s[0] * st for s, st in zip(box, strides(shape), strict=True))
    last = sum((range(*s)[-1]) * st for s, st in zip(box, strides(shape), strict=True))
    return first, last + 1
