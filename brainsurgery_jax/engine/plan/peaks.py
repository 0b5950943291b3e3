"""The peak memory of a block or a box, and the bytes that it reads.

Both are found by walking through its pieces as the evaluator does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.plan.footprint import (
    HOLES,
    holding_block,
    item_bytes,
    looking,
    making_block,
    reading_gaps,
    worst_moment,
)
from brainsurgery_jax.engine.plan.pieces import Piece, is_part, needs_of, plan_pieces
from brainsurgery_jax.graph.expr import Expr, cuts_of, is_whole
from brainsurgery_jax.index.boxes import Box, flat_range
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.io.boxes import elements_read

BOOKKEEPING = 128 << 10
"""Bytes of Python objects of a job: its closure, its entry in the queue, arrays of a few elements."""


class Cost(NamedTuple):
    """Bytes held at the worst moment, and bytes read."""

    peak: int
    reads: int


def block_cost(roots: Sequence[Expr], start: int, stop: int, questions: Sequence[Pending]) -> Cost:
    """The cost of computing a block of each root, and of answering `questions` about these blocks."""
    _, order = plan_pieces([Piece(e, start, stop) for e in roots])
    asking = max((looking(question, stop - start) for question in questions), default=0)
    return Cost(worst_moment(order, _nbytes, _making) + asking + BOOKKEEPING, _bytes_read(p for p, _ in order))


def box_cost(e: Expr, box: Box) -> Cost:
    """The cost of computing a box of a tensor and copying it into row-major order."""
    wanted = Piece(e, 0, 0, box)
    _, order = plan_pieces([wanted])
    return Cost(worst_moment(order, _nbytes, _making_of_box) + _nbytes(wanted), _bytes_read(p for p, _ in order))


def _bytes_read(pieces: Iterable[Piece]) -> int:
    """Bytes read for the leaves among some pieces, including gaps."""
    return sum(_elements(p) * p.expr.aval.dtype.bits // 8 for p in pieces if p.expr.is_leaf)


def _elements(piece: Piece) -> int:
    if piece.box is None:
        return piece.stop - piece.start
    return elements_read(piece.expr.aval.shape, piece.box, item_bytes(piece.expr))


def _making_of_box(piece: Piece) -> int:
    """The same for a box, where a permutation of axes is a view and takes no memory."""
    return _making(piece) - (_nbytes(piece) if piece.expr.moves is not None else 0)


def _nbytes(piece: Piece) -> int:
    return 0 if _is_seen(piece) else holding_block(piece.expr, prod(piece.shape))


def _is_seen(piece: Piece) -> bool:
    """Whether a piece is a box of an array that is held whole: it is a view of that array."""
    return piece.box is not None and (piece.expr.is_pick or is_whole(piece.expr))


def _making(piece: Piece) -> int:
    if _is_seen(piece):
        return 0
    cuts = cuts_of(piece.expr)
    if cuts is not None:
        made = _making_part(piece) if is_part(piece, cuts) else _nbytes(piece)
        return _nbytes(piece) + made + (_nbytes(piece) + made) // HOLES
    gaps = piece.expr.is_leaf and piece.box is not None and flat_range(piece.expr.aval.shape, piece.box) is None
    return making_block(piece.expr, prod(piece.shape)) + (reading_gaps(piece.expr) if gaps else 0)


def _making_part(piece: Piece) -> int:
    """Bytes of workspace that a part needs."""
    e = piece.expr
    assert e.kernel is not None and e.kernel.workspace is not None
    avals = tuple(Aval(need.shape, need.expr.aval.dtype) for need in needs_of(piece))
    return e.kernel.workspace(avals, dict(e.static))
