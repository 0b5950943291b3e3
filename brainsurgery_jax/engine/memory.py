"""Projected memory: what a block of a stream, or a task, holds at its worst moment, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

from brainsurgery_jax.engine.blocks import cuts
from brainsurgery_jax.engine.evaluate import Piece, plan_pieces
from brainsurgery_jax.engine.schedule import Root, Task, Written
from brainsurgery_jax.engine.segments import segments
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


def largest_task(tasks: Iterable[Task]) -> int:
    """Bytes that the most demanding task holds: what is copied as bytes holds none."""
    return max((_task_peak(task) for task in tasks), default=0)


def _task_peak(task: Task) -> int:
    if any(task.compute):
        return task.peak
    return max((stream_peak(*block) for root in task.roots for block in _first_blocks(root)), default=0)


def _first_blocks(root: Root) -> Iterator[tuple[Sequence[Expr], int, int]]:
    """The first block, the largest, of every range of a root that goes through memory."""
    if isinstance(root, Written):
        ranges = [((s.expr,), s.start, s.stop) for s in segments(root.expr) if s.run is None]
    else:
        ranges = [(root.exprs, 0, root.exprs[0].aval.size)]
    yield from ((exprs, *next(cuts(start, stop))) for exprs, start, stop in ranges if start < stop)


def _nbytes(piece: Piece) -> int:
    return prod(piece.shape) * max(1, piece.expr.aval.dtype.bits // 8)
