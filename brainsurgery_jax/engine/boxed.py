"""Jobs that make boxes of tensors: parts of results, tensors with axes in another order, sweeps of a leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

from brainsurgery_jax.boxes import Box, box_shape, flat_range
from brainsurgery_jax.engine import blocks
from brainsurgery_jax.engine.evaluate import Evaluator
from brainsurgery_jax.engine.events import Listener, Wrote
from brainsurgery_jax.engine.folds import Values, place_of
from brainsurgery_jax.engine.footprint import comparing
from brainsurgery_jax.engine.memory import asked_peak, sweep_peak
from brainsurgery_jax.engine.peaks import box_peak
from brainsurgery_jax.engine.segments import Segment
from brainsurgery_jax.engine.streams import Flow, Lane, Stream, asked, hand_over
from brainsurgery_jax.engine.sweeps import Sweep, box_of, span_of
from brainsurgery_jax.engine.tiles import has_parts, rows, tiles
from brainsurgery_jax.engine.verdicts import Verdicts
from brainsurgery_jax.graph.expr import asked_of
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.base import Writer


class Job(NamedTuple):
    """A piece of work: the memory that it needs, what to do on a thread, and what to do with the result afterwards."""

    nbytes: int
    do: Callable[[], Any]
    then: Callable[[Any], None]


class Made(NamedTuple):
    """A segment of an output tensor, where it is written, and what is asked of it as it goes by in boxes."""

    writer: Writer
    name: str
    segment: Segment
    looks: tuple[Flow, ...] = ()


def sweep_jobs(together: Iterable[Sweep], made: Sequence[Made], tell: Listener) -> Iterator[Job]:
    """Boxes of leaves, and what is made of each."""
    for sweep in together:
        yield from (_sweep_job(sweep, box, made, tell) for box in sweep.boxes)


def _sweep_job(sweep: Sweep, box: Box, made: Sequence[Made], tell: Listener) -> Job:
    def do() -> None:
        evaluator = Evaluator()
        evaluator.hold(sweep.leaf, span_of(sweep.leaf, box))
        for taker in sweep.takers:
            _put_box(made[taker.number], box_of(taker, sweep.leaf, box), evaluator)

    def then(_: None) -> None:
        for taker in sweep.takers:
            tell(_wrote_box(made[taker.number], box_of(taker, sweep.leaf, box)))

    return Job(sweep_peak(sweep), do, then)


def _put_box(m: Made, box: Box, evaluator: Evaluator) -> list[Any]:
    """Makes a box of a tensor, writes it, and looks at it: what each look gave."""
    e, at = m.segment.expr, m.segment.at
    array = evaluator.box(e, box)
    if (run := flat_range(e.aval.shape, box)) is not None:
        m.writer.put(m.name, at + run[0], array)
    else:
        starts, made = rows(e.aval.shape, box, array)
        m.writer.put_rows(m.name, at + starts, made)
    return [flow.take(place_of(e, box), [array.reshape(-1)]) for flow in m.looks]


def _wrote_box(m: Made, box: Box) -> Wrote:
    return Wrote(m.name, prod(box_shape(box)) * m.segment.expr.aval.dtype.bits // 8)


def tile_jobs(tiled: Iterable[Made], tell: Listener, known: Values) -> Iterator[Job]:
    """Boxes of tensors, those of different lanes in turn; small ones together."""
    lanes: dict[Lane, list[Made]] = {}
    for m in tiled:
        lanes.setdefault((m.writer, m.writer.lane(m.name)), []).append(m)
    yield from in_turn(_lane_tile_jobs(lane, tell, known) for lane in lanes.values())


def _lane_tile_jobs(tiled: Iterable[Made], tell: Listener, known: Values) -> Iterator[Job]:
    batch: list[tuple[Made, Box]] = []
    size = peak = 0
    for m in tiled:
        for box in tiles(m.segment.expr):
            if batch and size + prod(box_shape(box)) > blocks.BLOCK:
                yield _tile_job(batch, peak, tell, known)
                batch, size, peak = [], 0, 0
            batch.append((m, box))
            size, peak = size + prod(box_shape(box)), max(peak, _peak(m, box))
    if batch:
        yield _tile_job(batch, peak, tell, known)


def _peak(m: Made, box: Box) -> int:
    e = m.segment.expr
    looking = comparing([e], min(blocks.BLOCK, prod(box_shape(box)))) if m.looks else 0
    return box_peak(e, box) + looking


def look_while_writing(
    tiled: list[Made], questions: Iterable[tuple[Pending, Sequence[Box]]], verdicts: Verdicts
) -> list[tuple[Pending, Sequence[Box]]]:
    """Have questions about tensors that are made in parts answered while these are written, which makes each part once.

    Gives the other questions; `tiled` is changed.
    """
    places = {m.segment.expr: at for at, m in reversed(list(enumerate(tiled))) if has_parts(m.segment.expr)}
    others = []
    for question, boxes in questions:
        first, *more = asked_of(question)
        if more or (at := places.get(first)) is None:
            others.append((question, boxes))
        else:
            flow = asked(question, verdicts, len(boxes))
            tiled[at] = tiled[at]._replace(looks=(*tiled[at].looks, flow))
    return others


def asking_jobs(question: Pending, boxes: Sequence[Box], verdicts: Verdicts, known: Values) -> Iterator[Job]:
    """A question about tensors whose axes are put in another order, box by box: it does not ask for theirs."""
    flow = asked(question, verdicts, len(boxes))
    for box in boxes:
        yield Job(asked_peak(question, box), lambda box=box: look_at(flow, box, Evaluator(known=known)), flow.done)


def look_at(flow: Flow, box: Box, evaluator: Evaluator) -> Any:
    """The partial result of a question for one box."""
    if (known := flow.known()) is not None:
        return known
    return flow.take(place_of(flow.exprs[0], box), [evaluator.box(e, box).reshape(-1) for e in flow.exprs])


def _tile_job(batch: Sequence[tuple[Made, Box]], peak: int, tell: Listener, known: Values) -> Job:
    def do() -> list[list[Any]]:
        evaluator = Evaluator(known=known)
        return [_put_box(m, box, evaluator) for m, box in batch]

    def then(results: list[list[Any]]) -> None:
        for (m, box), result in zip(batch, results, strict=True):
            tell(_wrote_box(m, box))
            hand_over(m.looks, result)

    return Job(peak, do, then)


def in_turn(lanes: Iterable[Iterable[Job]]) -> Iterator[Job]:
    """The jobs of several lanes, one of each at a time."""
    yield from (job for turn in zip_longest(*lanes) for job in turn if job is not None)


def put_flow(m: Made, box: Box, evaluator: Evaluator, tell: Listener) -> tuple[Stream, list[Any]]:
    """Makes and writes a box of a tensor; the stream that tells so afterwards."""
    _put_box(m, box, evaluator)
    flow = Flow((m.segment.expr,), 0, 0, lambda start, blocks: None, lambda _: tell(_wrote_box(m, box)))
    return (flow,), [None]
