"""Projected memory: what all items that are performed at a time hold at their worst moment.

As many run at a time as there are threads, each with a peak of its own, and never more together than the budget: so the
projection is the sum of the largest ones, so many as there are threads, or the budget. It counts anonymous memory:
tensors and what is made on the way. The process itself comes on top, with JAX and what it compiles where a step needs
it, and freed memory that a thread keeps for its next block (`cli/environment.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import islice
from typing import NamedTuple

from brainsurgery_jax.engine.plan.work import Copy, Fold, Light, Machine, Whole, Work, WorkItem, parts_of, results_held
from brainsurgery_jax.errors import Diagnostic, PlanError, worded
from brainsurgery_jax.store.sizes import show_size


class Projection(NamedTuple):
    """Bytes held at most: by the most demanding part of an item, and by all that run at a time."""

    largest: int
    in_all: int


def projection(items: Sequence[WorkItem], machine: Machine) -> Projection:
    """What a run of these items holds at its worst moment: while folds go over their tensors, or afterwards.

    The results of the folds stay to the end.
    """
    folds = [item.work for item in items if isinstance(item.work, Fold)]
    stages = [_stage([item for item in items if not isinstance(item.work, Fold)], machine)]
    stages += [_stage(fold.items, machine) for fold in folds]
    held = sum(map(results_held, folds))
    return Projection(max(p.largest for p in stages) + held, max(p.in_all for p in stages) + held)


def _stage(items: Iterable[WorkItem], machine: Machine) -> Projection:
    largest = nlargest(machine.threads, _peaks(items, machine.threads))
    most = max(largest, default=0)
    return Projection(most, max(most, min(sum(largest), machine.host_bytes)))


def _peaks(items: Iterable[WorkItem], threads: int) -> Iterator[int]:
    """The peak of each part, of parts that are alike no more than can run at a time."""
    for item in items:
        yield from (item.host_bytes for _ in islice(parts_of(item.work), threads))


def refuse_too_large(items: Sequence[WorkItem], machine: Machine) -> None:
    """Raise PlanError if an item needs more memory than there is."""
    worst = projection(items, machine).largest
    if worst > machine.host_bytes:
        found = f"the largest task needs {show_size(worst)} of memory, the budget is {show_size(machine.host_bytes)}"
        hint = f"Give more: {worded(shell='`--memory`', python='`memory=`')}."
        raise PlanError([Diagnostic("budget-exceeded", found, hint=hint)])


def count_copied(items: Iterable[WorkItem]) -> int:
    """Bytes of the outputs that are copied from file to file."""
    lights = (w for item in items for w in _lights(item.work))
    return sum(t.run.nbytes for w in lights if isinstance(w, Copy) for t in w.transfers)


def _lights(work: Work) -> Iterator[Light]:
    if isinstance(work, Whole):
        yield from (w for roots in work.work for root in roots for w in root)
    elif not isinstance(work, Fold):
        yield work
