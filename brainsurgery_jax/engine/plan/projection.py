"""Projected memory: an upper bound of the bytes that a run holds.

Each thread performs one part of an item at a time, and the pool keeps the sum of their peaks within the budget. The
projection is therefore the sum of the largest peaks, one for each thread, but at most the budget. It counts tensors,
intermediate arrays, and what it takes to read checkpoints that are decoded. The process itself is not counted: JAX and
compiled code where a step needs them, and freed memory that a thread keeps for its next block (`cli/environment.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import chain, islice
from typing import NamedTuple

from brainsurgery_jax.engine.plan.work import (
    Copy,
    Fold,
    Light,
    Machine,
    Transfer,
    Whole,
    Work,
    WorkItem,
    deliveries,
    parts_of,
    results_held,
    sharers_of,
)
from brainsurgery_jax.errors import Diagnostic, PlanError, worded
from brainsurgery_jax.graph.expr import walk
from brainsurgery_jax.store.sizes import show_size


class Projection(NamedTuple):
    """The most bytes held: by the largest part of an item, and by all parts that run at the same time."""

    largest: int
    in_all: int


def projection(items: Sequence[WorkItem], machine: Machine, at_end: int = 0) -> Projection:
    """The projection of these items: the largest of the fold stages, the stage after them, and what outputs take
    `at_end`, when a library makes them of tensors that are all there.

    The results of folds are held to the end, and so is what sources keep.
    """
    folds = [item.work for item in items if isinstance(item.work, Fold)]
    together = [[item for item in items if not isinstance(item.work, Fold)], *(fold.items for fold in folds)]
    stages = [*(_stage(stage, machine) for stage in together), Projection(at_end, at_end)]
    held = sum(map(results_held, folds)) + _reading(chain.from_iterable(together), machine)
    return Projection(max(p.largest for p in stages) + held, max(p.in_all for p in stages) + held)


def _stage(items: Iterable[WorkItem], machine: Machine) -> Projection:
    """The projection of items that need no others. Of equal parts, no more count than can run at the same time."""
    peaks = (item.host_bytes for item in items for _ in islice(parts_of(item.work), machine.threads))
    largest = nlargest(machine.threads, peaks)
    most = max(largest, default=0)
    return Projection(most, max(most, min(sum(largest), machine.host_bytes)))


def _reading(items: Iterable[WorkItem], machine: Machine) -> int:
    """The bytes that the sources of these items take to be read."""
    computed = (item.work for item in items if not isinstance(item.work, Copy))
    ends = (delivery.end for work in computed for delivery in deliveries(work))
    exprs = (e for end in ends if not isinstance(end, Transfer) for e in end.exprs)
    sources = dict.fromkeys(e.source for e in walk(exprs) if e.is_leaf)
    needed = [source.header.reading for source in sources]
    return sum(reading.held + machine.threads * reading.each for reading in needed)


def refuse_too_large(items: Sequence[WorkItem], machine: Machine, at_end: int = 0) -> None:
    """Raise PlanError if an item, or an output `at_end`, needs more memory than there is."""
    if (refusal := refusal_of(items, machine, projection(items, machine, at_end).largest)) is not None:
        raise PlanError([refusal])


def refusal_of(items: Sequence[WorkItem], machine: Machine, worst: int) -> Diagnostic | None:
    """Why a run of these items is refused, the largest of which needs `worst` bytes; or None."""
    if worst <= machine.host_bytes:
        return None
    sharers = sharers_of(max(items, key=lambda item: item.host_bytes)) if items else 1
    of_all = f" in each of the {sharers} processes that share it" if sharers > 1 else ""
    need, there = show_size(worst), show_size(machine.host_bytes)
    found = f"the largest task needs {need} of memory{of_all}, the budget is {there}"
    more = worded(shell="`--memory`", python="`memory=`")
    hint = f"Give more: {more}."
    if machine.sharing > 1:
        found += f", the share of one of {machine.sharing} processes on this machine"
        hint = f"Give more: {more}. Or start fewer processes on each machine."
    if sharers > 1:
        hint = f"{hint} Or start processes on more machines."
    return Diagnostic("budget-exceeded", found, hint=hint)


def count_copied(items: Iterable[WorkItem]) -> int:
    """Bytes of the outputs that are copied from file to file."""
    lights = (w for item in items for w in _lights(item.work))
    return sum(t.run.nbytes for w in lights if isinstance(w, Copy) for t in w.transfers)


def _lights(work: Work) -> Iterator[Light]:
    if isinstance(work, Whole):
        yield from (w for roots in work.work for root in roots for w in root)
    elif not isinstance(work, Fold):
        yield work
