"""Going on with an interrupted run: which items are done already, and a journal of those that are done now."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.engine.plan.work import (
    Boxes,
    Copy,
    Fold,
    Light,
    Put,
    Stream,
    Whole,
    Work,
    WorkItem,
    parts_of,
    questions_of,
)
from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.index.boxes import Box, box_shape, contiguous_from, flat_range, strides
from brainsurgery_jax.store.address import is_remote
from brainsurgery_jax.store.atomic import Staged, stage
from brainsurgery_jax.store.io.files import Commit, Left, StagedOutput
from brainsurgery_jax.store.joining import Join
from brainsurgery_jax.store.journal import Interrupted, Journal, WrittenPart, find_interrupted
from brainsurgery_jax.store.leftovers import JOURNAL


class KeptElements(NamedTuple):
    """Elements of an output that an item writes, from number `start` on, and their bytes."""

    publication: int
    name: str
    start: int
    elements: int
    nbytes: int


class Resumption:
    """A run that can be continued; it is also the commit of its outputs. `head`: what must be the same in a run that
    goes on, by kinds. `process`: the number of this process in a run of several; all but the first only add what they
    write.

    Raises StoreError for an interrupted run of these destinations that had another head.
    """

    def __init__(self, commit: Commit, destinations: Sequence[str], head: Mapping[str, str], process: int = 0):
        for destination in filter(is_remote, destinations):
            remedy = "Write to a folder, or run without it."
            raise StoreError(
                destination, "is remote, and a run can be resumed only if it writes to a file system", remedy=remedy
            )
        self._commit, self._destinations = commit, destinations
        self._journal = Journal(head)
        self._process = process
        self._before: Interrupted | None = None if process else find_interrupted(destinations, head)
        self._waiting: dict[str, tuple[int, list[WrittenPart]]] = {}

    # --- Outputs ------------------------------------------------------------------------------------------------------

    def stage(self, destination: str, *, overwrite: bool, own: Collection[str]) -> Staged:
        """An output that is staged beside its destination, with what the interrupted run wrote of it."""
        number, before = len(self._journal.stagings), self._before
        keep = frozenset() if before is None else before.kept()
        staged = stage(destination, overwrite=overwrite, own=own, keep=keep)
        self._journal.stagings.append(staged.staging)
        if before is not None and number < len(before.stagings):
            before.move(number, staged.staging)
        if not number:
            self._journal.open(staged.staging + JOURNAL, {} if before is None else before.entries)
            if before is not None:
                for path in before.journals:
                    os.remove(path)
        return staged._replace(again=before is not None, log=self._journal)

    def prepare(self, staged: Sequence[StagedOutput]) -> None:
        """Does what may take long before outputs can appear."""
        self._commit.prepare(staged)

    def join(self, stagings: Sequence[str]) -> Join:
        """The commit of outputs that process 0 has staged at these paths, in order."""
        self._journal.stagings += stagings
        self._journal.open(f"{stagings[0]}{JOURNAL}.{self._process}", {})
        return Join(stagings, self._journal)

    def publish(self, staged: Sequence[StagedOutput], *, durable: bool) -> tuple[Left, ...]:
        """Renames all outputs into place, and ends the journal."""
        left = self._commit.publish(staged, durable=durable)
        self._journal.remove()
        return left

    def pause(self) -> None:
        """Keep what was written for a run that goes on."""
        if self._process:
            self._journal.close()
        elif self._journal.stagings:
            self._journal.pause(self._destinations)

    def abandon(self) -> None:
        """Remove the journal."""
        if self._process:
            self._journal.close()
        else:
            self._journal.remove()

    # --- Items --------------------------------------------------------------------------------------------------------

    def kept(self, items: Iterable[WorkItem]) -> frozenset[str]:
        """The keys of the items that are done. Items that also answer questions are always done again."""
        entries = {} if self._before is None else self._before.entries
        return frozenset(
            item.key for item in items
            if _is_noted(item) and item.writes and item.key in entries and entries[item.key].nbytes == item.writes
        )  # fmt: skip

    def begin(self, items: Iterable[WorkItem]) -> None:
        """Note these items from now on, each when it is done."""
        for item in items:
            if _is_noted(item):
                self._waiting[item.key] = (len(parts_of(item.work)), [])

    def part(self) -> AbstractContextManager[list[WrittenPart]]:
        """A block that does a part of an item; the list that it yields then holds what was written."""
        return self._journal.part()

    def settle(self, key: str, written: Sequence[WrittenPart]) -> None:
        """Note that a part of an item is done. Called in the order of the parts."""
        if key in self._waiting:
            number, parts = self._waiting[key]
            parts += written
            if len(parts) == number:
                self._journal.note(key, parts)
                del self._waiting[key]

    def note(self, kept: Collection[str], items: Sequence[WorkItem]) -> Diagnostic | None:
        """The note on how much of the work was done already."""
        if self._before is None:
            return None
        nbytes = sum(item.writes for item in items if item.key in kept)
        message = f"an interrupted run is continued: {len(kept)} of {len(items)} items were done"
        return Diagnostic("io-resumed", f"{message}, {nbytes:,} bytes", severity="note")


def _is_noted(item: WorkItem) -> bool:
    return not (isinstance(item.work, Fold) or questions_of(item.work))


def outputs_of(work: Work) -> Iterator[KeptElements]:
    """The elements of outputs that a piece of work writes."""
    match work:
        case Whole():
            for lights in (light for by_root in work.work for light in by_root):
                for light in lights:
                    yield from _outputs_of_light(light)
        case Fold():
            pass
        case _:
            yield from _outputs_of_light(work)


def _outputs_of_light(work: Light) -> Iterator[KeptElements]:
    match work:
        case Copy(transfers):
            for t in transfers:
                yield KeptElements(t.publication, t.name, t.at, t.run.nbytes * 8 // t.bits, t.run.nbytes)
        case Stream(passages):
            for p in passages:
                for sink in p.sinks:
                    if isinstance(sink, Put):
                        yield _kept(sink, p.start + sink.shift, p.stop - p.start)
        case Boxes(_, portions):
            for p in portions:
                for sink in p.sinks:
                    if isinstance(sink, Put):
                        yield from _kept_of_box(sink, p.box)


def _kept(put: Put, start: int, count: int) -> KeptElements:
    return KeptElements(put.publication, put.name, start, count, count * put.expr.aval.dtype.bits // 8)


def _kept_of_box(put: Put, box: Box) -> Iterator[KeptElements]:
    run = flat_range(put.expr.aval.shape, box)
    if run is not None:
        yield _kept(put, run[0] + put.shift, prod(box_shape(box)))
        return
    starts = row_starts(put.expr.aval.shape, box)
    for start in starts.tolist():
        yield _kept(put, start + put.shift, prod(box_shape(box)) // starts.size)


def row_starts(shape: Sequence[int], box: Box) -> np.ndarray:
    """Where each of the runs begins that a box is in a tensor of that shape."""
    axis = contiguous_from(shape, box)
    inner = flat_range(shape[axis:], box[axis:])
    assert inner is not None
    starts = np.full((), inner[0])
    for (start, stop, step), stride in zip(box[:axis], strides(shape), strict=False):
        starts = starts[..., None] + np.arange(start, stop, step) * stride
    return starts.reshape(-1)
