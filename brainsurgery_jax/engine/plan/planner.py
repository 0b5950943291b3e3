"""The one place that decides how each output and each answer of a program is computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple, TypeVar

from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.engine.plan.blocks import cuts
from brainsurgery_jax.engine.plan.folds import early_folds, first_question, in_full
from brainsurgery_jax.engine.plan.footprint import HEAP, looking
from brainsurgery_jax.engine.plan.keys import key_of
from brainsurgery_jax.engine.plan.passages import join
from brainsurgery_jax.engine.plan.peaks import BOOKKEEPING, Cost, block_cost, box_cost
from brainsurgery_jax.engine.plan.schedule import Asked, Root, Task, Written, asked, roots_of, schedule
from brainsurgery_jax.engine.plan.segments import Segment, segments
from brainsurgery_jax.engine.plan.sites import Batch, batches, sites_of
from brainsurgery_jax.engine.plan.sweeps import Sweep, box_of, span_of, sweeps
from brainsurgery_jax.engine.plan.tiles import blocks_to_ask, boxes_to_ask, has_parts, is_tiled, tiles
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
    Work,
    WorkItem,
    results_held,
)
from brainsurgery_jax.graph.expr import Expr, passes_of, walk
from brainsurgery_jax.index.boxes import Box, box_shape
from brainsurgery_jax.lower.program import Program

T = TypeVar("T")

COPY_BYTES = 64 << 20
"""Bytes that one item copies: many enough to outweigh its overhead, few enough to keep all threads busy."""

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
    return WorkItem(work, key_of(work, needs), held, 0, first + (passes - 1) * each, 0, needs)


def plan_stage(roots: Sequence[Root], machine: Machine, known: Collection[Expr] = ()) -> tuple[WorkItem, ...]:
    """The work for questions and outputs, when the folds `known` are already computed."""
    tasks = schedule(roots, known)
    light = [root for task in tasks if not any(task.compute) for root in task.roots]
    outputs = list(_outputs(root for root in light if isinstance(root, Written)))
    items = (
        *_light_items(
            [root for root in light if isinstance(root, Asked)], [o for o in outputs if isinstance(o, _Made)]
        ),
        *_whole_items([task for task in tasks if any(task.compute)], machine),
        *_copy_items(o for o in outputs if isinstance(o, Transfer)),
    )
    assert len({item.key for item in items}) == len(items), "keys are unique"
    return items


class _Made(NamedTuple):
    """A computed segment of an output, its destination, and questions that are answered from the same boxes."""

    put: Put
    segment: Segment
    asks: tuple[Ask, ...] = ()


def _outputs(roots: Iterable[Written]) -> Iterator[_Made | Transfer]:
    for root in roots:
        for s in segments(root.expr):
            if s.run is None:
                yield _Made(Put(root.publication, root.name, s.expr, s.at - s.start), s)
            else:
                yield Transfer(root.publication, root.name, s.at, s.run, s.expr.aval.dtype.bits)


# --- What is never held whole -----------------------------------------------------------------------------------------


def _light_items(asked: Sequence[Asked], made: Sequence[_Made]) -> Iterator[WorkItem]:
    """Work without whole operands. Tensors with permuted axes, and questions about them, are processed in boxes; all
    others block by block."""
    together = sweeps([m.segment for m in made])
    swept = {taker.number for sweep in together for taker in sweep.takers}
    alone = [m for number, m in enumerate(made) if number not in swept]
    boxes = {root: boxes_to_ask(root.question) for root in asked}
    tiled, apart = _ask_while_writing(
        [m for m in alone if is_tiled(m.segment)], {root: found for root, found in boxes.items() if found}
    )
    for root, found in apart.items():
        yield from (_portion_item(Portion((_ask(root, len(found)),), box)) for box in found)
    passages = [passage for root in asked if not boxes[root] for passage in _passages(root)]
    passages += [Passage((m.put,), m.segment.start, m.segment.stop) for m in alone if not is_tiled(m.segment)]
    joined = join(passages)
    yield from _stream_items(p for p in joined if not _writes(p))
    yield from _stream_items(p for p in joined if _writes(p))
    for sweep in together:
        yield from _sweep_items(sweep, made)
    yield from _tile_items(tiled)


def _ask(root: Asked, parts: int) -> Ask:
    return Ask(root.number, root.question, parts)


def _passages(root: Asked) -> Iterator[Passage]:
    """The passage of a question that is answered block by block; of a sampled one those of its blocks."""
    found = blocks_to_ask(root.question)
    ranges = found if root.question.reduction.sampled else [(0, root.exprs[0].aval.size)]
    yield from (Passage((_ask(root, len(found)),), start, stop) for start, stop in ranges)


def _writes(p: Passage) -> bool:
    return any(isinstance(sink, Put) for sink in p.sinks)


def _ask_while_writing(
    tiled: Sequence[_Made], boxes: Mapping[Asked, Sequence[Box]]
) -> tuple[list[_Made], dict[Asked, Sequence[Box]]]:
    """Answer questions about outputs that are computed in parts while the parts are written: each part is computed
    once. Returns the outputs with their questions, and the other questions."""
    tiled, others = list(tiled), dict[Asked, Sequence[Box]]()
    places = {m.segment.expr: at for at, m in reversed(list(enumerate(tiled))) if has_parts(m.segment.expr)}
    for root, found in boxes.items():
        first, *more = root.exprs
        if more or (at := places.get(first)) is None:
            others[root] = found
        else:
            tiled[at] = tiled[at]._replace(asks=(*tiled[at].asks, _ask(root, len(found))))
    return tiled, others


def _stream_items(passages: Iterable[Passage]) -> Iterator[WorkItem]:
    """Items of passages: one for a long tensor, one for several small tensors that are one block together."""
    yield from map(_stream_item, _pack(passages, lambda p: p.stop - p.start, blocks.BLOCK))


def _stream_item(passages: Sequence[Passage]) -> WorkItem:
    costs = list(map(_passage_cost, passages))
    writes = sum(_bytes(sink.expr, p.stop - p.start) for p in passages for sink in p.sinks if isinstance(sink, Put))
    return _item(Stream(tuple(passages)), max(c.peak for c in costs), sum(c.reads for c in costs), writes)


def _passage_cost(p: Passage) -> Cost:
    """The peak of the largest block; the bytes read are scaled from that block to the passage."""
    start, stop = max(cuts(p.start, p.stop), key=lambda r: r[1] - r[0])
    questions = [sink.question for sink in p.sinks if isinstance(sink, Ask)]
    cost = block_cost([e for sink in p.sinks for e in sink.exprs], start, stop, questions)
    return cost._replace(reads=cost.reads * (p.stop - p.start) // (stop - start))


def _sweep_items(sweep: Sweep, made: Sequence[_Made]) -> Iterator[WorkItem]:
    """Items of a sweep: each reads a box of the leaf and computes the portion of every output in it."""
    peak = sweep.peak + BOOKKEEPING + len(sweep.takers) * TAKER
    for box in sweep.boxes:
        span = span_of(sweep.leaf, box)
        portions = [Portion((made[t.number].put,), box_of(t, sweep.leaf, box)) for t in sweep.takers]
        work = Boxes((sweep.leaf, box), tuple(portions))
        yield _item(work, peak, _bytes(sweep.leaf, span.stop - span.start), sum(map(_bytes_written, portions)))


def _tile_items(tiled: Iterable[_Made]) -> Iterator[WorkItem]:
    """Items of boxes; small boxes share an item."""
    portions = (Portion((m.put, *m.asks), box) for m in tiled for box in tiles(m.segment.expr))
    for together in _pack(portions, lambda p: prod(box_shape(p.box)), blocks.BLOCK):
        yield _portion_item(*together)


def _portion_item(*portions: Portion) -> WorkItem:
    costs = list(map(_portion_cost, portions))
    writes = sum(map(_bytes_written, portions))
    return _item(Boxes(None, portions), max(c.peak for c in costs), sum(c.reads for c in costs), writes)


def _portion_cost(p: Portion) -> Cost:
    costs = [box_cost(e, p.box) for e in p.exprs]
    elements = min(blocks.BLOCK, prod(box_shape(p.box)))
    asking = max((looking(sink.question, elements) for sink in p.sinks if isinstance(sink, Ask)), default=0)
    return Cost(sum(c.peak for c in costs) + asking, sum(c.reads for c in costs))


def _bytes_written(p: Portion) -> int:
    return sum(_bytes(sink.expr, prod(box_shape(p.box))) for sink in p.sinks if isinstance(sink, Put))


def _bytes(e: Expr, elements: int) -> int:
    return elements * e.aval.dtype.bits // 8


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


def _item(work: Work, host_bytes: int, reads: int, writes: int, device_bytes: int = 0) -> WorkItem:
    return WorkItem(work, key_of(work), host_bytes, device_bytes, reads, writes)


# --- What has calls on whole operands ---------------------------------------------------------------------------------


def _whole_items(tasks: Sequence[Task], machine: Machine) -> Iterator[WorkItem]:
    """Items of whole operands, the largest first, lest one thread finish alone; among equals, those that only read."""
    asking_first = sorted(tasks, key=lambda task: any(isinstance(root, Written) for root in task.roots))
    largest_first = sorted(asking_first, key=lambda task: -task.peak)
    yield from (_whole_item(batch, machine) for batch in batches(largest_first, machine))


def _whole_item(batch: Batch, machine: Machine) -> WorkItem:
    work = tuple(tuple(_work_of(root) for root in task.roots) for task in batch.tasks)
    roots = [root for task in batch.tasks for root in task.roots]
    leaves = (e for e in walk(e for root in roots for e in root.exprs) if e.is_leaf)
    writes = sum(root.expr.aval.nbytes for root in roots if isinstance(root, Written))
    whole = Whole(batch.tasks, work, sites_of(batch, machine), batch.size)
    return _item(whole, batch.host_bytes, sum(e.aval.nbytes for e in leaves), writes, batch.device_bytes)


def _work_of(root: Root) -> tuple[Light, ...]:
    """The work on a root after the calls that it needs. An array that is held whole is processed in blocks, whatever
    the order of its axes."""
    if isinstance(root, Written):
        return tuple(map(_segment_work, _outputs([root])))
    if has_parts(root.exprs[0]) and (boxes := boxes_to_ask(root.question)):
        return (Boxes(None, tuple(Portion((_ask(root, len(boxes)),), box) for box in boxes)),)
    return (Stream(tuple(_passages(root))),)


def _segment_work(output: _Made | Transfer) -> Light:
    if isinstance(output, Transfer):
        return Copy((output,))
    put, s = output.put, output.segment
    if is_tiled(s) and has_parts(s.expr):
        return Boxes(None, tuple(Portion((put,), box) for box in tiles(s.expr)))
    return Stream((Passage((put,), s.start, s.stop),))


# --- What is copied as bytes ------------------------------------------------------------------------------------------


def _copy_items(transfers: Iterable[Transfer]) -> Iterator[WorkItem]:
    """Items of byte runs: long runs are cut, short ones share an item."""
    pieces = (piece for t in transfers for piece in _pieces(t))
    for together in _pack(pieces, lambda t: t.run.nbytes, COPY_BYTES):
        size = sum(t.run.nbytes for t in together)
        yield _item(Copy(tuple(together)), 0, size, size)


def _pieces(t: Transfer) -> Iterator[Transfer]:
    """A transfer in pieces of at most COPY_BYTES, cut between elements."""
    step = COPY_BYTES // t.bits * t.bits
    for offset in range(0, t.run.nbytes, step):
        run = t.run._replace(offset=t.run.offset + offset, nbytes=min(step, t.run.nbytes - offset))
        yield t._replace(at=t.at + offset * 8 // t.bits, run=run)
