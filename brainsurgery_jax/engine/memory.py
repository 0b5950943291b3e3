"""Projected memory: what a block of a stream, a task, and all jobs that run at a time hold at their worst moment, from
shapes alone.

In all, at most as many jobs run at a time as there are threads, each with a peak of its own, and never more together
than the budget: so the projection is the sum of the largest ones, so many as there are threads, or the budget. It
counts anonymous memory: tensors and what is made on the way. The process itself comes on top, with JAX and what it
compiles where a step needs it, and freed memory that a thread keeps for its next block (`cli/environment.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import repeat
from math import prod
from typing import Any, NamedTuple

from brainsurgery_jax.boxes import Box, box_shape
from brainsurgery_jax.engine.blocks import BLOCK, cuts
from brainsurgery_jax.engine.budget import Budget
from brainsurgery_jax.engine.folds import early_folds, first_question
from brainsurgery_jax.engine.footprint import FOLDS, comparing
from brainsurgery_jax.engine.peaks import BOOKKEEPING, box_peak, stream_peak
from brainsurgery_jax.engine.schedule import Asked, Root, Task, Written, schedule
from brainsurgery_jax.engine.segments import Segment, segments
from brainsurgery_jax.engine.streams import Flow, Stream, joined
from brainsurgery_jax.engine.sweeps import Sweep, sweeps
from brainsurgery_jax.engine.tiles import boxes_to_ask, is_tiled, tiles
from brainsurgery_jax.graph.expr import asked_of
from brainsurgery_jax.protocol import Pending

TAKER = 2 << 10
"""Bytes of Python's own for each tensor that is made in a sweep: there are thousands, with an expression each."""


def sweep_peak(sweep: Sweep) -> int:
    """Bytes held while a box of a sweep goes by."""
    return sweep.peak + BOOKKEEPING + len(sweep.takers) * TAKER


class Projection(NamedTuple):
    """Bytes held at most: by the most demanding job, and by all that run at a time."""

    largest: int
    in_all: int


def projection(tasks: Iterable[Task], budget: Budget) -> Projection:
    """What a run of these tasks holds. Copying bytes from file to file takes none."""
    largest = nlargest(budget.threads, job_peaks(tasks))
    most = max(largest, default=0)
    return Projection(most, max(most, min(sum(largest), budget.host_bytes)))


def plan_memory(roots: Sequence[Root], budget: Budget) -> tuple[list[Task], Projection]:
    """The tasks of a run, and what it holds at its worst moment: while folds go over their tensors, or afterwards."""
    levels = early_folds(e for root in roots for e in root.exprs)
    known = {e for level in levels for e in level}
    tasks = schedule(roots, known)
    stages = [tasks, *(schedule([Asked(first_question(e)) for e in level], known) for level in levels)]
    held = FOLDS * sum(e.aval.nbytes for e in known)
    found = [projection(stage, budget) for stage in stages]
    return tasks, Projection(max(p.largest for p in found) + held, max(p.in_all for p in found) + held)


def job_peaks(tasks: Iterable[Task]) -> Iterator[int]:
    """Bytes that each job holds at its worst moment: a task with something to compute whole, or a block of a stream."""
    flows: list[Flow] = []
    made: list[Segment] = []
    for task in tasks:
        if any(task.compute):
            yield task.peak
            continue
        for root in task.roots:
            if isinstance(root, Written):
                made += [s for s in segments(root.expr) if s.run is None]
            elif boxes := boxes_to_ask(root.question):
                yield from (asked_peak(root.question, box) for box in boxes)
            else:
                flows.append(Flow(root.exprs, 0, root.exprs[0].aval.size, _ask, _done))
    together = sweeps(made)
    swept = {taker.number for sweep in together for taker in sweep.takers}
    yield from (sweep_peak(sweep) for sweep in together for _ in sweep.boxes)
    for s in (s for number, s in enumerate(made) if number not in swept):
        if is_tiled(s):
            yield from (box_peak(s.expr, box) for box in tiles(s.expr))
        else:
            flows.append(Flow((s.expr,), s.start, s.stop, _write, _done))
    for stream in joined(flows):
        yield from _stream_peaks(stream)


def _stream_peaks(stream: Stream) -> Iterator[int]:
    ranges = list(cuts(stream[0].start, stream[0].stop))
    largest = max(ranges, key=lambda r: r[1] - r[0])
    questions = [flow.exprs for flow in stream if flow.take is _ask]
    return repeat(stream_peak([e for flow in stream for e in flow.exprs], *largest, questions), len(ranges))


def asked_peak(question: Pending, box: Box) -> int:
    """Bytes held while a box of each tensor of a question is made and compared."""
    exprs = asked_of(question)
    return sum(box_peak(e, box) for e in exprs) + comparing(exprs, min(BLOCK, prod(box_shape(box))))


def _ask(start: int, blocks: Sequence[Any]) -> None:
    """Stands for looking at a block."""


def _write(start: int, blocks: Sequence[Any]) -> None:
    """Stands for writing a block."""


def _done(result: Any) -> None:
    """Stands for what is done with the result."""
