"""The one place that decides how each output and each answer of a program is computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.engine.plan.footprint import BOOKKEEPING, HEAP, Cost, block_cost, box_cost_once
from brainsurgery_jax.engine.plan.schedule import (
    Root,
    Task,
    Written,
    asked,
    early_folds,
    first_question,
    in_full,
    roots_of,
    schedule,
)
from brainsurgery_jax.engine.plan.segments import blocks_to_ask, boxes_to_ask, has_parts, is_tiled, segments, tiles
from brainsurgery_jax.engine.plan.sites import batches, sites_of
from brainsurgery_jax.engine.plan.sweeps import Sweep, box_of, span_of, sweeps
from brainsurgery_jax.engine.plan.work import (
    Ask,
    Boxes,
    Copy,
    Fold,
    Light,
    Machine,
    Passage,
    Portion,
    Put,
    Stream,
    Transfer,
    Whole,
    WorkItem,
    item_of,
    results_held,
)
from brainsurgery_jax.graph.expr import Expr, passes_of, walk
from brainsurgery_jax.lower.program import Program

T = TypeVar("T")

COPY_BYTES = 64 << 20
"""Bytes that one item copies: many enough to outweigh its overhead, few enough to keep all threads busy."""

MOST_READ = 16
"""The most tensors that are read together, which bounds memory."""

TAKER = 2 << 10
"""Bytes of Python objects for each tensor of a sweep: there may be thousands, each with an expression."""


def plan_work(program: Program, machine: Machine) -> tuple[WorkItem, ...]:
    """The work of a program, in the order in which it starts. Items that only read come first, so that most failing
    asserts stop a run before it writes."""
    return plan_roots(list(roots_of(program)), machine)


def plan_roots(roots: Sequence[Root], machine: Machine) -> tuple[WorkItem, ...]:
    """The same for questions and outputs. All other items need the folds of large tensors."""
    levels = early_folds(e for root in roots for e in root.exprs)
    known = frozenset(e for level in levels for e in level)
    folds: list[WorkItem] = []
    for level in levels:
        folds.append(_fold_item(level, known, machine, tuple(item.key for item in folds[-1:])))
    needs = tuple(item.key for item in folds[-1:])
    return (*folds, *(item._replace(needs=needs) for item in plan_stage(roots, machine, known)))


def _fold_item(calls: Sequence[Expr], known: Collection[Expr], machine: Machine, needs: tuple[str, ...]) -> WorkItem:
    """The item of some folds: the parts of a pass over all blocks. A sampled first pass reads some of them."""
    questions = list(map(first_question, calls))
    items = plan_stage(list(asked(map(in_full, questions))), machine, known)
    items = tuple(item._replace(host_bytes=item.host_bytes + HEAP) for item in items)  # partial results wait in turn
    passes = max(len(passes_of(call) or ()) for call in calls)
    work = Fold(tuple(calls), passes, items)
    held = max((item.host_bytes for item in items), default=0) + results_held(work)
    each = first = sum(item.reads for item in items)
    if any(question.reduction.sampled for question in questions):
        first = sum(item.reads for item in plan_stage(list(asked(questions)), machine, known))
    return item_of(work, held, first + (passes - 1) * each, needs=needs)


def plan_stage(roots: Sequence[Root], machine: Machine, known: Collection[Expr] = ()) -> tuple[WorkItem, ...]:
    """The work for questions and outputs, when the folds `known` are already computed."""
    tasks = schedule(roots, known)
    passed = [part for task in tasks if not any(task.compute) for root in task.roots for part in _pass_root(root)]
    items = (
        *_light_items(passed),
        *_whole_items([task for task in tasks if any(task.compute)], machine),
        *_copy_items(part for part in passed if isinstance(part, Transfer)),
    )
    assert len({item.key for item in items}) == len(items), "keys are unique"
    return items


def _pass_root(root: Root, *, held: bool = False) -> Iterator[Transfer | Passage | Portion]:
    """The parts in which an output or a question passes: byte runs, ranges and, for a question, boxes. `held`: after
    calls whose results are held whole."""
    if isinstance(root, Written):
        for s in segments(root.expr):
            if s.run is None:
                put = Put(root.publication, root.name, s.expr, s.at - s.start)
                yield Passage((put,), s.start, s.stop)
            else:
                yield Transfer(root.publication, root.name, s.at, s.run, s.expr.aval.dtype.bits)
    elif (not held or has_parts(root.exprs[0])) and (boxes := boxes_to_ask(root.question)):
        yield from (Portion((Ask(root.number, root.question, len(boxes)),), box) for box in boxes)
    else:
        found = blocks_to_ask(root.question)
        ranges = found if root.question.reduction.sampled else [(0, root.exprs[0].aval.size)]
        yield from (Passage((Ask(root.number, root.question, len(found)),), *ends) for ends in ranges)


# --- What is never held whole -----------------------------------------------------------------------------------------


def _light_items(parts: Sequence[Transfer | Passage | Portion]) -> Iterator[WorkItem]:
    """Work without whole operands. Tensors with permuted axes, and questions about them, are processed in boxes; all
    others block by block."""
    passages = [part for part in parts if isinstance(part, Passage)]
    together = sweeps(passages)
    swept = {taker.put for sweep in together for taker in sweep.takers}
    streamed, tiled = list[Passage](), list[Portion]()
    for p in passages:
        (sink,) = p.sinks
        if isinstance(sink, Put) and is_tiled(sink.expr, p.start, p.stop):
            tiled += (Portion((sink,), box) for box in tiles(sink.expr) if sink not in swept)
        elif sink not in swept:
            streamed.append(p)
    tiled, asking = _ask_while_writing(tiled, [part for part in parts if isinstance(part, Portion)])
    joined, costs = join(streamed), dict[Hashable, Cost]()
    yield from (_box_item([p], costs) for p in asking)
    for writes in (False, True):
        found = (p for p in joined if any(isinstance(sink, Put) for sink in p.sinks) is writes)
        yield from (_stream_item(together, costs) for together in _pack(found, lambda p: p.size, blocks.BLOCK))
    for sweep in together:
        yield from _sweep_items(sweep)
    yield from (_box_item(packed, costs) for packed in _pack(tiled, lambda p: p.size, blocks.BLOCK))


def join(passages: Sequence[Passage]) -> list[Passage]:
    """Join passages that cover the same range and share a tensor, so that an assert and an output, or two outputs, read
    it once. The result is in the order of their first members."""
    joined: dict[int, Passage] = {}
    reads: dict[int, set[Expr]] = {}
    home: dict[tuple[int, int, Expr], int] = {}
    for at, p in enumerate(passages):
        leaves = {e for e in walk(p.exprs) if e.is_leaf and e.aval.size == p.stop - p.start}
        near = (home.get((p.start, p.stop, leaf)) for leaf in leaves)
        place = next((n for n in near if n is not None and len(reads[n] | leaves) <= MOST_READ), at)
        joined[place] = p._replace(sinks=(*joined[place].sinks, *p.sinks)) if place in joined else p
        reads.setdefault(place, set()).update(leaves)
        home |= {(p.start, p.stop, leaf): place for leaf in leaves}
    return [joined[place] for place in sorted(joined)]


def _ask_while_writing(tiled: Sequence[Portion], asking: Sequence[Portion]) -> tuple[list[Portion], list[Portion]]:
    """Answer questions about outputs that are computed in parts while the parts are written: each part is computed
    once. Returns the portions of outputs with their questions, and the other portions of questions."""
    tiled, others = list(tiled), list[Portion]()
    asked = {p.exprs[0] for p in asking if len(p.exprs) == 1 and has_parts(p.exprs[0])}
    places = {(p.exprs, p.box): at for at, p in reversed(list(enumerate(tiled))) if p.exprs[0] in asked}
    for p in asking:
        if (at := places.get((p.exprs, p.box))) is None:
            others.append(p)
        else:
            tiled[at] = tiled[at]._replace(sinks=(*tiled[at].sinks, *p.sinks))
    return tiled, others


def _stream_item(passages: Sequence[Passage], known: dict[Hashable, Cost]) -> WorkItem:
    """The item of a long range, or of several short ones that are one block together. `known`: see `block_cost`."""
    costs = [block_cost(p.exprs, p.start, p.stop, p.questions, known) for p in passages]
    return item_of(Stream(tuple(passages)), max(c.peak for c in costs), sum(c.reads for c in costs))


def _box_item(portions: Sequence[Portion], known: dict[Hashable, Cost]) -> WorkItem:
    """The item of a box, or of several small boxes. `known`: see `block_cost`."""
    costs = [box_cost_once(p.exprs, p.box, p.questions, known) for p in portions]
    return item_of(Boxes(None, tuple(portions)), max(c.peak for c in costs), sum(c.reads for c in costs))


def _sweep_items(sweep: Sweep) -> Iterator[WorkItem]:
    """Items of a sweep: each reads a box of the leaf and computes the portion of every output in it."""
    peak = sweep.peak + BOOKKEEPING + len(sweep.takers) * TAKER
    for box in sweep.boxes:
        span = span_of(sweep.leaf, box)
        portions = tuple(Portion((t.put,), box_of(t, sweep.leaf, box)) for t in sweep.takers)
        reads = (span.stop - span.start) * sweep.leaf.aval.dtype.bits // 8
        yield item_of(Boxes((sweep.leaf, box), portions), peak, reads)


def _pack(parts: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Group consecutive parts up to a total size of `most`; a larger part is a group of its own."""
    together: list[T] = []
    size = 0
    for part in parts:
        if together and size + size_of(part) > most:
            yield together
            together, size = [], 0
        together.append(part)
        size += size_of(part)
    if together:
        yield together


# --- What has calls on whole operands ---------------------------------------------------------------------------------


def _whole_items(tasks: Sequence[Task], machine: Machine) -> Iterator[WorkItem]:
    """Items of whole operands, the largest first, lest one thread finish alone; among equals, those that only read."""
    asking_first = sorted(tasks, key=lambda task: any(isinstance(root, Written) for root in task.roots))
    for batch in batches(sorted(asking_first, key=lambda task: -task.peak), machine):
        work = tuple(tuple(tuple(_pass_held(root)) for root in task.roots) for task in batch.tasks)
        leaves = (e for e in walk(e for task in batch.tasks for root in task.roots for e in root.exprs) if e.is_leaf)
        whole = Whole(batch.tasks, work, sites_of(batch, machine), batch.size, batch.shared, batch.sharers)
        yield item_of(whole, batch.host_bytes, sum(e.aval.nbytes for e in leaves), batch.device_bytes)


def _pass_held(root: Root) -> Iterator[Light]:
    """The work on a root after the calls that it needs. An array that is held whole is processed in blocks, whatever
    the order of its axes."""
    for part in _pass_root(root, held=True):
        match part:
            case Transfer():
                yield Copy((part,))
            case Portion():
                yield Boxes(None, (part,))
            case Passage((Put() as put,), start, stop) if is_tiled(put.expr, start, stop) and has_parts(put.expr):
                yield Boxes(None, tuple(Portion((put,), box) for box in tiles(put.expr)))
            case Passage():
                yield Stream((part,))


# --- What is copied as bytes ------------------------------------------------------------------------------------------


def _copy_items(transfers: Iterable[Transfer]) -> Iterator[WorkItem]:
    """Items of byte runs: long runs are cut between elements, short ones share an item."""
    for together in _pack(chain.from_iterable(map(_pieces, transfers)), lambda t: t.run.nbytes, COPY_BYTES):
        yield item_of(Copy(tuple(together)), 0, sum(t.run.nbytes for t in together))


def _pieces(t: Transfer) -> Iterator[Transfer]:
    """A transfer in pieces of at most COPY_BYTES, cut between elements."""
    step = COPY_BYTES // t.bits * t.bits
    for offset in range(0, t.run.nbytes, step):
        run = t.run._replace(offset=t.run.offset + offset, nbytes=min(step, t.run.nbytes - offset))
        yield t._replace(at=t.at + offset * 8 // t.bits, run=run)
