"""Running a program: jobs on threads within a budget, outputs into staging, published once every check has passed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

from brainsurgery_jax.boxes import Box, box_shape
from brainsurgery_jax.engine import blocks
from brainsurgery_jax.engine.batches import batches, computed
from brainsurgery_jax.engine.blas import one_thread
from brainsurgery_jax.engine.blocks import cuts
from brainsurgery_jax.engine.budget import Budget
from brainsurgery_jax.engine.devices import accelerated
from brainsurgery_jax.engine.evaluate import Evaluator
from brainsurgery_jax.engine.events import Factorized, Listener, Published, Started, Wrote, ignore
from brainsurgery_jax.engine.kernels import exact, runs_on_host
from brainsurgery_jax.engine.memory import asked_peak, box_peak, projection, stream_peak
from brainsurgery_jax.engine.pool import Pool
from brainsurgery_jax.engine.schedule import Asked, Task, Written, roots_of, schedule
from brainsurgery_jax.engine.segments import Segment, segments
from brainsurgery_jax.engine.staging import Staging
from brainsurgery_jax.engine.streams import Flow, Lane, Stream, asked, hand_over, joined, pass_through, written
from brainsurgery_jax.engine.tiles import boxes_to_ask, is_tiled, rows, tiles
from brainsurgery_jax.engine.verdicts import Verdicts
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.lower.program import Program
from brainsurgery_jax.protocol import Known, Pending, Reduction
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.base import FileRun, Source, Writer
from brainsurgery_jax.store.sizes import show_size

COPY_BYTES = 64 << 20
"""Bytes that one job copies: large enough to be worth a job, small enough to keep all threads busy."""


class Job(NamedTuple):
    """A piece of work: the memory that it needs, what to do on a thread, and what to do with the result afterwards."""

    nbytes: int
    do: Callable[[], Any]
    then: Callable[[Any], None]


def execute(program: Program, budget: Budget, tell: Listener, look: Callable[[Staged], None] | None = None) -> None:
    """Run a program: checks, outputs, publication. Raises PlanError or StoreError; then nothing was published.

    `look` is called with each complete output before any is published.
    """
    tasks = schedule(list(roots_of(program)))
    _refuse_too_large(projection(tasks, budget).largest, budget)
    tell(Started(sum(p.nbytes for p in program.publications), len(tasks)))
    verdicts = Verdicts(program.checks, tell)
    with Staging(program.publications, durable=budget.durable) as staging:
        _run(tasks, budget, Outlet(staging.writers, verdicts, tell))
        assert verdicts.settled
        for source in _sources(tasks):
            source.verify_unchanged()
        staging.publish(look)
    for p in program.publications:
        tell(Published(p.path, p.nbytes, len(p.tensors)))


def numbers(exprs: Sequence[Expr], budget: Budget) -> Mapping[Expr, int]:
    """The values of integer scalars that steps need before they can be lowered."""
    keep = Reduction(lambda x: int(x[0]), max, int, 0)
    questions = {e: Pending((e,), keep, lambda value: Known(True)) for e in exprs}
    verdicts = Verdicts((), ignore)
    tasks = schedule([Asked(q) for q in questions.values()])
    _refuse_too_large(projection(tasks, budget).largest, budget)
    _run(tasks, budget, Outlet([], verdicts, ignore))
    return {e: verdicts.answers[q] for e, q in questions.items()}


class Outlet(NamedTuple):
    """Where results go: writers by publication, verdicts, and who is told."""

    writers: Sequence[Writer]
    verdicts: Verdicts
    tell: Listener


def _run(tasks: Sequence[Task], budget: Budget, outlet: Outlet) -> None:
    context = _context(tasks)
    blas = one_thread() if any(any(task.compute) for task in tasks) else nullcontext()
    with blas, Pool(budget.threads, budget.host_bytes) as pool:
        for job in jobs_of(tasks, outlet):
            pool.submit(job.nbytes, partial(_within, context, job.do), job.then)
        pool.drain()


def _within(context: Callable[[], AbstractContextManager[Any]], do: Callable[[], Any]) -> Any:
    with context():
        return do()


def _refuse_too_large(worst: int, budget: Budget) -> None:
    if worst > budget.host_bytes:
        found = f"the largest task needs {show_size(worst)} of memory, the budget is {show_size(budget.host_bytes)}"
        raise PlanError([Diagnostic("budget-exceeded", found, hint="Give more: `--memory`, or `memory=` in Python.")])


def jobs_of(tasks: Sequence[Task], outlet: Outlet) -> Iterator[Job]:
    """The jobs of a program: what only looks first, so that most failing asserts stop the run before it writes."""
    flows: list[Flow] = []
    copies: list[tuple[Writer, str, Segment, FileRun]] = []
    tiled: list[tuple[Writer, str, Segment]] = []
    wholes: list[Task] = []
    for task in sorted(tasks, key=lambda t: any(isinstance(r, Written) for r in t.roots)):
        if any(task.compute):
            wholes.append(task)
            continue
        for root in task.roots:
            if isinstance(root, Asked) and (boxes := boxes_to_ask(root.question)):
                yield from _asking_jobs(root.question, boxes, outlet.verdicts)
                continue
            made, runs = _flows(root, outlet, tiled)
            flows += made
            copies += runs
    yield from _stream_jobs(joined(flows))
    yield from _tile_jobs(tiled, outlet.tell)
    # The largest first, or the last to begin would keep one thread busy alone.
    wholes.sort(key=lambda task: -task.peak)
    yield from (_whole_job(batch, outlet) for batch in (batches(wholes) if accelerated() else zip(wholes)))
    yield from _copy_jobs(copies, outlet.tell)


def _flows(
    root: Written | Asked, outlet: Outlet, tiled: list[tuple[Writer, str, Segment]] | None = None
) -> tuple[list[Flow], list[tuple[Writer, str, Segment, FileRun]]]:
    """What of a root is streamed through memory, and what is copied from file to file; what is better made in boxes
    goes to `tiled`, if given."""
    if isinstance(root, Asked):
        return [asked(root.question, outlet.verdicts)], []
    writer = outlet.writers[root.publication]
    flows, runs = [], []
    for s in segments(root.expr):
        if s.run is not None:
            runs.append((writer, root.name, s, s.run))
        elif tiled is not None and is_tiled(s):
            tiled.append((writer, root.name, s))
        else:
            flows.append(written(s, root.name, writer, outlet.tell))
    return flows, runs


def _tile_jobs(tiled: Iterable[tuple[Writer, str, Segment]], tell: Listener) -> Iterator[Job]:
    """Boxes of tensors, those of different lanes in turn; small ones together."""
    lanes: dict[Lane, list[tuple[Writer, str, Segment]]] = {}
    for writer, name, segment in tiled:
        lanes.setdefault((writer, writer.lane(name)), []).append((writer, name, segment))
    yield from _in_turn(_lane_tile_jobs(lane, tell) for lane in lanes.values())


def _lane_tile_jobs(tiled: Iterable[tuple[Writer, str, Segment]], tell: Listener) -> Iterator[Job]:
    batch: list[tuple[Writer, str, Segment, Box]] = []
    size = peak = 0
    for writer, name, segment in tiled:
        for box in tiles(segment.expr):
            if batch and size + prod(box_shape(box)) > blocks.BLOCK:
                yield _tile_job(batch, peak, tell)
                batch, size, peak = [], 0, 0
            batch.append((writer, name, segment, box))
            size, peak = size + prod(box_shape(box)), max(peak, box_peak(segment.expr, box))
    if batch:
        yield _tile_job(batch, peak, tell)


def _asking_jobs(question: Pending, boxes: Sequence[Box], verdicts: Verdicts) -> Iterator[Job]:
    """A question about tensors whose axes are put in another order, box by box: it does not ask for theirs."""
    flow = asked(question, verdicts, len(boxes))

    def look(box: Box) -> Any:
        if (known := flow.known()) is not None:
            return known
        evaluator = Evaluator()
        return flow.take(0, [evaluator.box(e, box).reshape(-1) for e in flow.exprs])

    for box in boxes:
        yield Job(asked_peak(question, box), partial(look, box), flow.done)


def _tile_job(batch: Sequence[tuple[Writer, str, Segment, Box]], peak: int, tell: Listener) -> Job:
    def do() -> None:
        evaluator = Evaluator()
        for writer, name, segment, box in batch:
            starts, made = rows(segment.expr.aval.shape, box, evaluator.box(segment.expr, box))
            writer.put_rows(name, segment.at + starts, made)

    def then(_: None) -> None:
        for _writer, name, segment, box in batch:
            tell(Wrote(name, prod(box_shape(box)) * segment.expr.aval.dtype.bits // 8))

    return Job(peak, do, then)


def _stream_jobs(streams: Iterable[Stream]) -> Iterator[Job]:
    """First what only looks, then what writes, the lanes in turn."""
    lanes: dict[Lane | None, list[Stream]] = {None: []}
    for stream in streams:
        lanes.setdefault(next((flow.lane for flow in stream if flow.lane is not None), None), []).append(stream)
    yield from _lane_stream_jobs(lanes.pop(None))
    yield from _in_turn(map(_lane_stream_jobs, lanes.values()))


def _in_turn(lanes: Iterable[Iterable[Job]]) -> Iterator[Job]:
    yield from (job for turn in zip_longest(*lanes) for job in turn if job is not None)


def _lane_stream_jobs(streams: Iterable[Stream]) -> Iterator[Job]:
    """Jobs of one block, or of many small tensors that make up one."""
    batch: list[tuple[Stream, int, int]] = []
    size = peak = 0
    for stream in streams:
        ranges = list(cuts(stream[0].start, stream[0].stop))
        largest = max(ranges, key=lambda r: r[1] - r[0])
        questions = [flow.exprs for flow in stream if flow.lane is None]
        need = stream_peak([e for flow in stream for e in flow.exprs], *largest, questions)
        for start, stop in ranges:
            if batch and size + stop - start > blocks.BLOCK:
                yield _stream_job(batch, peak)
                batch, size, peak = [], 0, 0
            batch.append((stream, start, stop))
            size, peak = size + stop - start, max(peak, need)
    if batch:
        yield _stream_job(batch, peak)


def _stream_job(batch: Sequence[tuple[Stream, int, int]], peak: int) -> Job:
    def do() -> list[list[Any]]:
        evaluator = Evaluator()
        return [pass_through(stream, start, stop, evaluator) for stream, start, stop in batch]

    def then(results: list[list[Any]]) -> None:
        for (stream, _, _), result in zip(batch, results, strict=True):
            hand_over(stream, result)

    return Job(peak, do, then)


def _whole_job(batch: Sequence[Task], outlet: Outlet) -> Job:
    """Tasks with contractions or factorizations: computed by one thread, each result dropped after its last use."""

    def do() -> tuple[list[Factorized], list[tuple[Stream, list[Any]]]]:
        told: list[Factorized] = []
        results: list[tuple[Stream, list[Any]]] = []
        for task, evaluator in computed(batch):
            results += _served(task, evaluator, outlet)
            told += evaluator.told
        return told, results

    def then(done: tuple[list[Factorized], list[tuple[Stream, list[Any]]]]) -> None:
        told, results = done
        for fact in told:
            outlet.tell(fact)
        for stream, result in results:
            hand_over(stream, result)

    return Job(sum(task.peak for task in batch), do, then)


def _served(task: Task, evaluator: Evaluator, outlet: Outlet) -> Iterator[tuple[Stream, list[Any]]]:
    for root in evaluator.served(task):
        flows, runs = _flows(root, outlet)
        for writer, name, segment, run in runs:
            writer.copy(name, segment.at, run)
        for flow in flows:
            for start, stop in cuts(flow.start, flow.stop):
                yield (flow,), pass_through((flow,), start, stop, evaluator)


def _copy_jobs(copies: Iterable[tuple[Writer, str, Segment, FileRun]], tell: Listener) -> Iterator[Job]:
    """Byte runs from file to file, the lanes in turn."""
    lanes: dict[Lane, list[tuple[Writer, str, Segment, FileRun]]] = {}
    for copy in copies:
        writer, name, *_ = copy
        lanes.setdefault((writer, writer.lane(name)), []).append(copy)
    yield from _in_turn(_lane_copy_jobs(lane, tell) for lane in lanes.values())


def _lane_copy_jobs(copies: Iterable[tuple[Writer, str, Segment, FileRun]], tell: Listener) -> Iterator[Job]:
    batch: list[tuple[Writer, str, int, FileRun]] = []
    size = 0
    for writer, name, segment, run in copies:
        for at, piece in _pieces(segment, run):
            if batch and size + piece.nbytes > COPY_BYTES:
                yield _copy_job(batch, tell)
                batch, size = [], 0
            batch.append((writer, name, at, piece))
            size += piece.nbytes
    if batch:
        yield _copy_job(batch, tell)


def _pieces(segment: Segment, run: FileRun) -> Iterator[tuple[int, FileRun]]:
    """A run in pieces of at most COPY_BYTES, cut between elements."""
    bits = segment.expr.aval.dtype.bits
    step = COPY_BYTES // bits * bits
    for offset in range(0, run.nbytes, step):
        piece = run._replace(offset=run.offset + offset, nbytes=min(step, run.nbytes - offset))
        yield segment.at + offset * 8 // bits, piece


def _copy_job(batch: Sequence[tuple[Writer, str, int, FileRun]], tell: Listener) -> Job:
    def do() -> None:
        for writer, name, at, run in batch:
            writer.copy(name, at, run)

    def then(_: None) -> None:
        for _writer, name, _at, run in batch:
            tell(Wrote(name, run.nbytes))

    return Job(0, do, then)


def _context(tasks: Iterable[Task]) -> Callable[[], AbstractContextManager[Any]]:
    """The 64-bit context, entered only if anything is computed: what numpy does never imports JAX."""
    calls = (e for t in tasks for r in t.roots for e in walk(r.exprs) if e.kernel is not None and e.moves is None)
    return nullcontext if all(map(runs_on_host, calls)) else exact


def _sources(tasks: Iterable[Task]) -> list[Source]:
    return list(dict.fromkeys(e.source for t in tasks for r in t.roots for e in walk(r.exprs) if e.kind == "leaf"))
