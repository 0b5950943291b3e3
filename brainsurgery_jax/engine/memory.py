"""Projected memory: what a block of a stream, or a task, holds at its worst moment, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from brainsurgery_jax.engine.evaluate import Piece, plan_pieces
from brainsurgery_jax.graph.expr import Expr


def stream_peak(roots: Sequence[Expr], start: int, stop: int) -> int:
    """Bytes held while a block of each root is made, by going through its pieces as the evaluator does.

    A kernel's operands may be padded to the next power of two, and its result is a new array: both are counted.
    """
    uses, order = plan_pieces([Piece(e, start, stop) for e in roots])
    held = worst = 0
    for piece, needs in order:
        size = _nbytes(piece)
        worst = max(worst, held + 2 * size + 2 * sum(map(_nbytes, needs)))
        held += size
        for n in needs:
            uses[n] -= 1
            if not uses[n]:
                held -= _nbytes(n)
    return worst


def _nbytes(piece: Piece) -> int:
    return prod(piece.shape) * max(1, piece.expr.aval.dtype.bits // 8)
