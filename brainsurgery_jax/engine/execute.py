"""Running a program: jobs on threads within a budget, outputs into staging, published once every check has passed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from brainsurgery_jax.boxes import Box
from brainsurgery_jax.engine import blocks
from brainsurgery_jax.engine.batches import batch_peak, batches, computed
from brainsurgery_jax.engine.blas import one_thread
from brainsurgery_jax.engine.blocks import cuts
from brainsurgery_jax.engine.boxed import (
    Job,
    Made,
    asking_jobs,
    in_turn,
    look_at,
    look_while_writing,
    put_flow,
    sweep_jobs,
    tile_jobs,
)
from brainsurgery_jax.engine.budget import Budget
from brainsurgery_jax.engine.devices import Choice, accelerated, using
from brainsurgery_jax.engine.evaluate import Evaluator
from brainsurgery_jax.engine.events import Factorized, Listener, Noted, Published, Started, Wrote, ignore
from brainsurgery_jax.engine.folds import INTEGER, Values, compute_folds, early_folds, question_of
from brainsurgery_jax.engine.kernels import exact, runs_on_host
from brainsurgery_jax.engine.memory import plan_memory
from brainsurgery_jax.engine.peaks import stream_peak
from brainsurgery_jax.engine.pool import Pool
from brainsurgery_jax.engine.schedule import Asked, Root, Task, Written, is_empty, roots_of, schedule
from brainsurgery_jax.engine.segments import Segment, segments
from brainsurgery_jax.engine.staging import Staging
from brainsurgery_jax.engine.streams import Flow, Lane, Stream, asked, hand_over, joined, pass_through, written
from brainsurgery_jax.engine.sweeps import sweeps
from brainsurgery_jax.engine.tiles import boxes_to_ask, has_parts, is_tiled, tiles
from brainsurgery_jax.engine.verdicts import Verdicts
from brainsurgery_jax.errors import Diagnostic, PlanError, worded
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.lower.program import Program
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.atomic import BY_RENAME
from brainsurgery_jax.store.base import FileRun, Source, Writer
from brainsurgery_jax.store.files import Commit, Left, StagedOutput
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.store.uninterrupted import uninterrupted

COPY_BYTES = 64 << 20
"""Bytes that one job copies: large enough to be worth a job, small enough to keep all threads busy."""


def execute(
    program: Program,
    budget: Budget,
    tell: Listener,
    look: Callable[[StagedOutput], None] | None = None,
    commit: Commit = BY_RENAME,
) -> None:
    """Run a program: checks, outputs, publication. Raises PlanError or StoreError; then nothing was published.

    `look` is called with each complete output before any is published, `commit` is how outputs appear.
    """
    roots = list(roots_of(program))
    tasks, projected = plan_memory(roots, budget)
    _refuse_too_large(projected.largest, budget)
    tell(Started(sum(p.nbytes for p in program.publications), len(tasks), program.sizes))
    verdicts = Verdicts(program.checks, tell)
    with Staging(program.publications, commit, durable=budget.durable) as staging:
        for note in staging.notes:
            tell(Noted(note))
        known = _fold(roots, budget)
        _run(tasks, budget, Outlet(staging.writers, verdicts, tell, known))
        assert verdicts.settled
        for source in _sources(tasks):
            source.verify_unchanged()
        staging.complete(look)
        with uninterrupted():  # what is published is told, whatever comes then
            left = staging.publish()
            for p in program.publications:
                tell(Published(p.path, p.nbytes, len(p.tensors), p.side_names))
    for old in left:
        tell(Noted(_left(old)))


def _left(old: Left) -> Diagnostic:
    if old.kept:
        why, hint = (
            "something appeared there at the last moment, and was kept",
            f"Move it to a place of its own: {old.path}",
        )
    else:
        why, hint = f"what it replaced could not be removed: {old.reason}", f"Delete it: {old.path}"
    return Diagnostic(
        "io-left", f"{old.destination}: the new output is in place, but {why}", hint=hint, severity="note"
    )


def numbers(exprs: Sequence[Expr], budget: Budget) -> Mapping[Expr, int]:
    """The values of integer scalars that steps need before they can be lowered."""
    questions = {e: question_of((e,), INTEGER) for e in exprs}
    found = answers(list(questions.values()), budget)
    return {e: found[q] for e, q in questions.items()}


def answers(questions: Sequence[Pending], budget: Budget) -> Mapping[Pending, Any]:
    """The answers to questions that are not about a program. Raises PlanError for a budget that is too small."""
    roots = [Asked(q) for q in questions if not is_empty(q)]
    _refuse_too_large(plan_memory(roots, budget)[1].largest, budget)
    return _answers(questions, budget, _fold(roots, budget))


def _answers(questions: Sequence[Pending], budget: Budget, known: Values) -> Mapping[Pending, Any]:
    verdicts = Verdicts((), ignore)
    tasks = schedule([Asked(q) for q in questions if not is_empty(q)], known)
    _run(tasks, budget, Outlet([], verdicts, ignore, known))
    return {q: q.reduction.empty if is_empty(q) else verdicts.answers[q] for q in questions}


def _fold(roots: Sequence[Root], budget: Budget) -> Values:
    """The values of large folds, level by level."""
    known: Values = {}
    for level in early_folds(e for root in roots for e in root.exprs):
        known = {**known, **compute_folds(level, partial(_answers, budget=budget, known=known))}
    return known


class Outlet(NamedTuple):
    """Where results go: writers by publication, verdicts, and who is told. `known`: folds that are computed."""

    writers: Sequence[Writer]
    verdicts: Verdicts
    tell: Listener
    known: Values


def _run(tasks: Sequence[Task], budget: Budget, outlet: Outlet) -> None:
    with using(budget.devices):
        _run_there(tasks, budget, outlet)


def _run_there(tasks: Sequence[Task], budget: Budget, outlet: Outlet) -> None:
    context = _context(tasks)
    blas = one_thread() if any(any(task.compute) for task in tasks) else nullcontext()
    with blas, Pool(budget.threads, budget.host_bytes) as pool:
        for job in jobs_of(tasks, outlet, budget.host_bytes):
            pool.submit(job.nbytes, partial(_within, budget.devices, context, job.do), job.then)
        pool.drain()


def _within(devices: Choice, context: Callable[[], AbstractContextManager[Any]], do: Callable[[], Any]) -> Any:
    with using(devices), context():
        return do()


def _refuse_too_large(worst: int, budget: Budget) -> None:
    if worst > budget.host_bytes:
        found = f"the largest task needs {show_size(worst)} of memory, the budget is {show_size(budget.host_bytes)}"
        hint = f"Give more: {worded(shell='`--memory`', python='`memory=`')}."
        raise PlanError([Diagnostic("budget-exceeded", found, hint=hint)])


def jobs_of(tasks: Sequence[Task], outlet: Outlet, host_bytes: int) -> Iterator[Job]:
    """The jobs of a program: what only looks first, so that most failing asserts stop the run before it writes.

    `host_bytes`: what those that are computed as one batch may take together.
    """
    flows: list[Flow] = []
    copies: list[tuple[Writer, str, Segment, FileRun]] = []
    made: list[Made] = []
    boxed: list[tuple[Pending, Sequence[Box]]] = []
    wholes: list[Task] = []
    for task in sorted(tasks, key=lambda t: any(isinstance(r, Written) for r in t.roots)):
        if any(task.compute):
            wholes.append(task)
            continue
        for root in task.roots:
            if isinstance(root, Asked) and (boxes := boxes_to_ask(root.question)):
                boxed.append((root.question, boxes))
                continue
            if isinstance(root, Asked):
                flows.append(asked(root.question, outlet.verdicts))
                continue
            for m in _segments(root, outlet):
                if (run := m.segment.run) is not None:
                    copies.append((m.writer, m.name, m.segment, run))
                else:
                    made.append(m)
    together = sweeps([m.segment for m in made])
    swept = {taker.number for sweep in together for taker in sweep.takers}
    tiled: list[Made] = []
    for m in (m for number, m in enumerate(made) if number not in swept):
        if is_tiled(m.segment):
            tiled.append(m)
        else:
            flows.append(written(m.segment, m.name, m.writer, outlet.tell))
    apart = look_while_writing(tiled, boxed, outlet.verdicts)
    for question, boxes in apart:
        yield from asking_jobs(question, boxes, outlet.verdicts, outlet.known)
    yield from _stream_jobs(joined(flows), outlet.known)
    yield from sweep_jobs(together, made, outlet.tell)
    yield from tile_jobs(tiled, outlet.tell, outlet.known)
    # The largest first, or the last to begin would keep one thread busy alone.
    wholes.sort(key=lambda task: -task.peak)
    yield from (_whole_job(batch, outlet) for batch in (batches(wholes, host_bytes) if accelerated() else zip(wholes)))
    yield from _copy_jobs(copies, outlet.tell)


def _segments(root: Written, outlet: Outlet) -> Iterator[Made]:
    """The segments of an output."""
    writer = outlet.writers[root.publication]
    yield from (Made(writer, root.name, s) for s in segments(root.expr))


def _stream_jobs(streams: Iterable[Stream], known: Values) -> Iterator[Job]:
    """First what only looks, then what writes, the lanes in turn."""
    lanes: dict[Lane | None, list[Stream]] = {None: []}
    for stream in streams:
        lanes.setdefault(next((flow.lane for flow in stream if flow.lane is not None), None), []).append(stream)
    yield from _lane_stream_jobs(lanes.pop(None), known)
    yield from in_turn(_lane_stream_jobs(lane, known) for lane in lanes.values())


def _lane_stream_jobs(streams: Iterable[Stream], known: Values) -> Iterator[Job]:
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
                yield _stream_job(batch, peak, known)
                batch, size, peak = [], 0, 0
            batch.append((stream, start, stop))
            size, peak = size + stop - start, max(peak, need)
    if batch:
        yield _stream_job(batch, peak, known)


def _stream_job(batch: Sequence[tuple[Stream, int, int]], peak: int, known: Values) -> Job:
    def do() -> list[list[Any]]:
        evaluator = Evaluator(known=known)
        return [pass_through(stream, start, stop, evaluator) for stream, start, stop in batch]

    def then(results: list[list[Any]]) -> None:
        for (stream, _, _), result in zip(batch, results, strict=True):
            hand_over(stream, result)

    return Job(peak, do, then)


def _whole_job(batch: Sequence[Task], outlet: Outlet) -> Job:
    """Tasks with contractions or factorizations: computed by one thread, each result dropped after its last use."""

    def do() -> tuple[list[Factorized | Noted], list[tuple[Stream, list[Any]]]]:
        told: list[Factorized | Noted] = []
        results: list[tuple[Stream, list[Any]]] = []
        for task, evaluator in computed(batch, outlet.known):
            results += _served(task, evaluator, outlet)
            told += evaluator.told
        return told, results

    def then(done: tuple[list[Factorized | Noted], list[tuple[Stream, list[Any]]]]) -> None:
        told, results = done
        for fact in told:
            outlet.tell(fact)
        for stream, result in results:
            hand_over(stream, result)

    return Job(batch_peak(batch), do, then)


def _served(task: Task, evaluator: Evaluator, outlet: Outlet) -> Iterator[tuple[Stream, list[Any]]]:
    for root in evaluator.served(task):
        flows: list[Flow] = []
        if isinstance(root, Asked):
            if has_parts(root.exprs[0]) and (boxes := boxes_to_ask(root.question)):
                flow = asked(root.question, outlet.verdicts, len(boxes))
                yield from (((flow,), [look_at(flow, box, evaluator)]) for box in boxes)
                continue
            flows.append(asked(root.question, outlet.verdicts))
        else:
            for m in _segments(root, outlet):
                if m.segment.run is not None:
                    m.writer.copy(m.name, m.segment.at, m.segment.run)
                elif is_tiled(m.segment) and has_parts(m.segment.expr):
                    yield from (put_flow(m, box, evaluator, outlet.tell) for box in tiles(m.segment.expr))
                else:
                    flows.append(written(m.segment, m.name, m.writer, outlet.tell))
        for flow in flows:
            for start, stop in cuts(flow.start, flow.stop):
                yield (flow,), pass_through((flow,), start, stop, evaluator)


def _copy_jobs(copies: Iterable[tuple[Writer, str, Segment, FileRun]], tell: Listener) -> Iterator[Job]:
    """Byte runs from file to file, the lanes in turn."""
    lanes: dict[Lane, list[tuple[Writer, str, Segment, FileRun]]] = {}
    for copy in copies:
        writer, name, *_ = copy
        lanes.setdefault((writer, writer.lane(name)), []).append(copy)
    yield from in_turn(_lane_copy_jobs(lane, tell) for lane in lanes.values())


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
