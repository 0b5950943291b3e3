"""Perform one piece of work on a thread, and settle its results on the main thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.engine.compute.batches import call_tasks
from brainsurgery_jax.engine.compute.devices import Accelerators
from brainsurgery_jax.engine.compute.evaluate import Evaluator, Meeting
from brainsurgery_jax.engine.compute.folds import Values, place_of
from brainsurgery_jax.engine.compute.kernels import exact
from brainsurgery_jax.engine.events import NEVER, Advanced, Factorized, Listener, Noted, StopSignal, Wrote
from brainsurgery_jax.engine.plan.blocks import cuts
from brainsurgery_jax.engine.plan.compiling import Lengths
from brainsurgery_jax.engine.plan.pieces import Piece
from brainsurgery_jax.engine.plan.sweeps import span_of
from brainsurgery_jax.engine.plan.work import (
    Ask,
    Boxes,
    Copy,
    Light,
    Put,
    Sink,
    Stream,
    Transfer,
    Whole,
    WorkItem,
)
from brainsurgery_jax.engine.run.hosts import ALONE, Hosts
from brainsurgery_jax.engine.run.nonfinite import Place, holds_new
from brainsurgery_jax.engine.run.resume import Resumption, outputs_of, row_starts
from brainsurgery_jax.engine.run.verdicts import Verdicts
from brainsurgery_jax.index.boxes import Box, flat_range
from brainsurgery_jax.store.base import Writer
from brainsurgery_jax.store.io.recycling import Scratches
from brainsurgery_jax.store.journal import WrittenPart


@dataclass(frozen=True, slots=True)
class Bench:
    """What work is performed with: writers by publication, verdicts, a listener, accelerators, folds that are computed,
    whether anything is compiled, the signal that stops it, what keeps its journal, the processes of the run, the
    lengths of parts that are compiled although numpy could compute them, memory for operands, and which tensors that
    are computed hold NaN or infinity (by publication and name), which is added to on any thread."""

    writers: Sequence[Writer]
    verdicts: Verdicts
    tell: Listener
    own: Accelerators
    known: Values
    compiles: bool
    stop: StopSignal = NEVER
    resumption: Resumption | None = None
    hosts: Hosts = ALONE
    lengths: Lengths = field(default_factory=dict)
    scratches: Scratches = field(default_factory=Scratches)
    nonfinite: set[Place] = field(default_factory=set)


Result = tuple[Put | Transfer, int] | tuple[Ask, object]
"""The result of a part of a tensor: the bytes that were written, or the partial result of a question."""


class Done(NamedTuple):
    """The results of a piece of work, in order, and what it wrote, if a journal is kept."""

    told: Sequence[Factorized | Noted]
    results: Sequence[Result]
    written: Sequence[WrittenPart]


def perform(work: Light | Whole, bench: Bench, meeting: Meeting | None = None, *, passing: bool = True) -> Done:
    """Perform a piece of work. Called on any thread. Only where something is compiled the 64-bit context is entered:
    what numpy does never imports JAX. `meeting` computes calls with other processes; who is not `passing` takes part in
    that, and leaves it to another to write the results and to answer questions."""
    journal = nullcontext([]) if bench.resumption is None else bench.resumption.part()
    with exact() if bench.compiles else nullcontext(), journal as written:
        if not isinstance(work, Boxes):
            bench.scratches.drop()
        if isinstance(work, Whole):
            told, results = _call(work, bench, meeting, passing=passing)
        else:
            with bench.scratches.take() as scratch:
                evaluator = Evaluator(own=bench.own, known=bench.known, lengths=bench.lengths, scratch=scratch)
                told, results = [], list(_pass(work, bench, evaluator))
    return Done(told, results, written)


def settle(done: Done, item: str, moved: int, bench: Bench) -> None:
    """Report the results of a part of an item, which moved so many bytes. Called on the main thread, in the order of
    the work. Raises PlanError for an assert that fails."""
    for event in done.told:
        bench.tell(event._replace(item=item))
    for result in done.results:
        match result:
            case (Put() | Transfer() as sink, int() as nbytes):
                bench.tell(Wrote(sink.name, nbytes, item))
            case (Ask() as ask, part):
                bench.verdicts.add(ask, part)
    if bench.resumption is not None and not _is_to_be_told(done, bench):
        bench.resumption.settle(item, done.written)
    bench.tell(Advanced(item, moved))


def _is_to_be_told(done: Done, bench: Bench) -> bool:
    """Whether a part wrote of a tensor that holds NaN or infinity: a run that goes on does it again, so that it tells
    of them."""
    return any(isinstance(sink, Put) and (sink.publication, sink.name) in bench.nonfinite for sink, _ in done.results)


def keep(item: WorkItem, bench: Bench) -> None:
    """Report the results of an item that an interrupted run has done."""
    for kept in outputs_of(item.work):
        bench.writers[kept.publication].keep(kept.name, kept.start, kept.elements)
        bench.tell(Wrote(kept.name, kept.nbytes, item.key))
    bench.tell(Advanced(item.key, item.reads + item.writes))


def _call(
    work: Whole, bench: Bench, meeting: Meeting | None, *, passing: bool
) -> tuple[list[Factorized | Noted], list[Result]]:
    """Tasks with contractions or factorizations: by one thread, each result dropped after its last use."""
    told: list[Factorized | Noted] = []
    results: list[Result] = []
    called = call_tasks(work.tasks, work.size, bench.own, bench.known, bench.lengths, meeting)
    for (task, evaluator), work_by_root in zip(called, work.work, strict=True):
        for _, light in zip(evaluator.serve(task), work_by_root, strict=True):
            results += (result for w in light if passing for result in _pass(w, bench, evaluator))
        told += evaluator.told
    return told, results


def _pass(work: Light, bench: Bench, evaluator: Evaluator) -> Iterator[Result]:
    match work:
        case Copy(transfers):
            for t in transfers:
                bench.writers[t.publication].copy(t.name, t.at, t.run)
                yield t, t.run.nbytes
        case Stream(passages):
            for p in passages:
                for start, stop in cuts(p.start, p.stop):
                    yield from _serve(p.sinks, (start, stop, None), bench, evaluator)
        case Boxes(held, portions):
            if held is not None:
                evaluator.hold(held[0], span_of(*held))
            for p in portions:
                yield from _serve(p.sinks, (0, 0, p.box), bench, evaluator)


def _serve(
    sinks: Sequence[Sink], place: tuple[int, int, Box | None], bench: Bench, evaluator: Evaluator
) -> Iterator[Result]:
    """Write a range or a box of tensors, and answer questions about it, unless all answers are known without it."""
    known = [(sink, bench.verdicts.tally(sink).known) for sink in sinks if isinstance(sink, Ask)]
    if len(known) == len(sinks) and all(part is not None for _, part in known):
        yield from known
        return
    arrays = evaluator.pieces([Piece(e, *place) for sink in sinks for e in sink.exprs])
    start, _, box = place
    first = start if box is None else place_of(sinks[0].exprs[0], box)
    for sink in sinks:
        match sink:
            case Put():
                array = np.asarray(next(arrays))
                if holds_new(sink.expr, array):
                    bench.nonfinite.add((sink.publication, sink.name))
                _put(sink, first, box, array, bench.writers[sink.publication])
                yield sink, array.size * sink.expr.aval.dtype.bits // 8
            case Ask():
                blocks = [np.asarray(next(arrays)).reshape(-1) for _ in sink.exprs]
                yield sink, bench.verdicts.tally(sink).look(first, blocks)


def _put(put: Put, first: int, box: Box | None, array: np.ndarray, writer: Writer) -> None:
    if box is None or flat_range(put.expr.aval.shape, box) is not None:
        writer.put(put.name, first + put.shift, array)
    else:
        starts, made = rows(put.expr.aval.shape, box, array)
        writer.put_rows(put.name, starts + put.shift, made)


def rows(shape: Sequence[int], box: Box, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The runs that a box is in a tensor of that shape: where each begins, and its elements, a row each."""
    starts = row_starts(shape, box)
    return starts, array.reshape(starts.size, -1)
