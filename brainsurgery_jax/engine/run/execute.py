"""Running a program: its work on threads within a budget, outputs into staging, published once every check passed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby, zip_longest
from typing import Any

from brainsurgery_jax.engine.compute.blas import one_thread
from brainsurgery_jax.engine.compute.devices import NONE, Accelerators, Devices, accelerators, may_be_found
from brainsurgery_jax.engine.compute.folds import INTEGER, Values, compute_folds
from brainsurgery_jax.engine.compute.kernels import begin_import_of_jax
from brainsurgery_jax.engine.events import (
    NEVER,
    Advanced,
    Finishing,
    Listener,
    Noted,
    Published,
    Started,
    StopSignal,
    ignore,
)
from brainsurgery_jax.engine.plan.assign import cut_long
from brainsurgery_jax.engine.plan.compiling import Lengths, lengths_to_compile
from brainsurgery_jax.engine.plan.planner import plan_roots, plan_stage
from brainsurgery_jax.engine.plan.projection import refuse_too_large
from brainsurgery_jax.engine.plan.schedule import Root, asked, exprs_of, is_empty, question_of, roots_of
from brainsurgery_jax.engine.plan.sites import exceeds
from brainsurgery_jax.engine.plan.work import (
    Fold,
    Light,
    Machine,
    Put,
    Transfer,
    Whole,
    WorkItem,
    deliveries,
    parts_of,
    sharers_of,
)
from brainsurgery_jax.engine.run.agreement import agree
from brainsurgery_jax.engine.run.budget import Budget
from brainsurgery_jax.engine.run.hosts import ALONE, Hosts
from brainsurgery_jax.engine.run.nonfinite import gather_places, nonfinite_notes
from brainsurgery_jax.engine.run.perform import Bench, keep, perform, settle
from brainsurgery_jax.engine.run.pool import Pool
from brainsurgery_jax.engine.run.resume import Resumption
from brainsurgery_jax.engine.run.staging import PLAINLY, Handling, Staging, held_at_end
from brainsurgery_jax.engine.run.together import (
    SharedCalls,
    Stage,
    agree_on_kept,
    digest_keys,
    exchange,
    stages,
)
from brainsurgery_jax.engine.run.verdicts import Verdicts
from brainsurgery_jax.errors import Diagnostic, Stopped
from brainsurgery_jax.graph.expr import Expr, is_fold, is_whole, runs_on_devices, runs_on_numpy, walk
from brainsurgery_jax.lower.program import Program
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.io.files import Left
from brainsurgery_jax.store.uninterrupted import defer_signals


def execute(
    program: Program,
    budget: Budget,
    tell: Listener,
    handling: Handling = PLAINLY,
    stop: StopSignal = NEVER,
    hosts: Hosts = ALONE,
) -> None:
    """Run a program: checks, outputs, publication. Raises PlanError, StoreError or Stopped; then nothing was published.

    `stop` is looked at between items. `hosts`: the processes that run it together; the first publishes.
    """
    roots = list(roots_of(program))
    exprs = exprs_of(roots)
    if hosts.count > 1 and _is_any_shared(exprs, machine_of(budget, hosts.count)):
        hosts.share_devices()
    own, machine = equip(exprs, budget, hosts.count)
    items = plan_roots(roots, machine)
    if hosts.count > 1:
        items = cut_long(items)
        agree(hosts, "work", {"items of work": digest_keys(items)})
    refuse_too_large(items, machine, held_at_end(program.publications))
    moved = {item.key: item.reads + item.writes for item in items}
    tell(Started(sum(p.nbytes for p in program.publications), count_tasks(roots, items), program.sizes, moved))
    verdicts = Verdicts(program.checks, ignore if hosts.number else tell, together=hosts.count > 1)
    with Staging(program.publications, handling, durable=budget.durable, hosts=hosts) as staging:
        for note in staging.notes:
            tell(Noted(note))
        bench = Bench(
            staging.writers, verdicts, tell, own, {}, _compiles(exprs, accelerated=bool(machine.devices)),
            hosts.stop(stop), handling.resumption, hosts, _compile_more(exprs),
        )  # fmt: skip
        _run(items, machine, replace(bench, known=_fold(items, machine, replace(bench, resumption=None))), roots)
        assert verdicts.settled
        nonfinite = gather_places(hosts, bench.nonfinite)
        for note in () if hosts.number else nonfinite_notes(program.publications, nonfinite):
            tell(Noted(note))
        tell(Finishing())
        for source in dict.fromkeys(e.source for e in walk(exprs) if e.is_leaf):
            source.verify_unchanged()
        _finish(program, staging, hosts, tell)


def _finish(program: Program, staging: Staging, hosts: Hosts, tell: Listener) -> None:
    """Publish what is written. Of several processes the first does it, when the others have written their parts."""
    if hosts.count > 1:
        staging.encode_part()
    if hosts.number:
        staging.leave()
    hosts.gather("written")
    if not hosts.number:
        _publish(program, staging, tell)
    hosts.gather("published")


def _publish(program: Program, staging: Staging, tell: Listener) -> None:
    staging.complete()
    links = staging.links
    with defer_signals():  # what is published is reported, whatever comes then
        left = staging.publish()
        for p in program.publications:
            tell(Published(p.path, p.nbytes, len(p.written), p.side_names))
    for old in left:
        tell(Noted(_note_left(old)))
    for path, count in links:
        tell(Noted(_note_links(path, count)))


def _note_links(path: str, count: int) -> Diagnostic:
    message = f"{path}: hard links to files that were read: {count}"
    hint = "Who writes to such a file in place changes both checkpoints; replacing or deleting it changes one."
    return Diagnostic("io-linked", message, hint=hint, severity="note")


def _note_left(old: Left) -> Diagnostic:
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


def numbers(exprs: Sequence[Expr], budget: Budget, stop: StopSignal = NEVER) -> Mapping[Expr, int]:
    """The values of integer scalars that steps need before they can be lowered."""
    questions = {e: question_of((e,), INTEGER) for e in exprs}
    found = answers(list(questions.values()), budget, stop)
    return {e: found[q] for e, q in questions.items()}


def answers(questions: Sequence[Pending], budget: Budget, stop: StopSignal = NEVER) -> Mapping[Pending, Any]:
    """The answers to questions that are not about a program. Raises PlanError for a budget that is too small, and
    Stopped."""
    roots = list(asked(questions))
    own, machine = equip(exprs_of(roots), budget)
    items = plan_roots(roots, machine)
    refuse_too_large(items, machine)
    bench = Bench([], Verdicts((), ignore), ignore, own, {}, False, stop)
    return _answers(questions, machine, bench, _fold(items, machine, bench))


def _answers(questions: Sequence[Pending], machine: Machine, bench: Bench, known: Values) -> Mapping[Pending, object]:
    roots, verdicts = list(asked(questions)), Verdicts((), ignore)
    compiles = _compiles(exprs_of(roots), accelerated=bool(machine.devices))
    own = replace(bench, verdicts=verdicts, tell=ignore, known=known, compiles=compiles)
    _run(plan_stage(roots, machine, known), machine, own, roots)
    return {q: q.reduction.empty if is_empty(q) else verdicts.answers[q] for q in questions}


def _fold(items: Iterable[WorkItem], machine: Machine, bench: Bench) -> Values:
    """The values of large folds, level by level."""
    known: Values = {}
    told: dict[str, int] = {}

    def ask(item: WorkItem, fold: Fold, questions: Sequence[Pending]) -> Mapping[Pending, object]:
        answered = _answers(questions, machine, bench, known)
        told[item.key] = told.get(item.key, 0) + 1
        if told[item.key] <= fold.passes:  # what is repeated was not expected
            bench.tell(Advanced(item.key, item.reads // fold.passes))
        return answered

    for item in items:
        if isinstance(item.work, Fold):
            known = {**known, **compute_folds(item.work.calls, partial(ask, item, item.work))}
    return known


def equip(exprs: Sequence[Expr], budget: Budget, processes: int = 1) -> tuple[Accelerators, Machine]:
    """The accelerators that these are computed on, and what a run may use, as a value."""
    own = choose_accelerators(exprs, budget.devices)
    return own, replace(machine_of(budget, processes), devices=len(own.devices), bytes_each=own.bytes_each)


def _is_any_shared(exprs: Sequence[Expr], machine: Machine) -> bool:
    """Whether a call that these need exceeds one process: JAX must know it before it starts, as the planner may let it
    do."""
    return any(is_whole(e) and exceeds(e, machine) for e in walk(exprs))


def machine_of(budget: Budget, processes: int) -> Machine:
    """What each process of a run may use, without accelerators: to find these, JAX must start."""
    return Machine(budget.host_bytes, budget.threads, sharing=budget.sharing, processes=processes)


def choose_accelerators(exprs: Sequence[Expr], devices: Devices) -> Accelerators:
    """The accelerators that these are computed on. There are none where nothing can be compiled, since asking for them
    starts JAX. Raises PlanError for those that are not there."""
    return accelerators(devices) if devices not in ("all", "cpu") or _compiles(exprs, accelerated=True) else NONE


def _compiles(exprs: Iterable[Expr], *, accelerated: bool) -> bool:
    """Whether JAX computes a call. It does not compute folds, what only moves, and what numpy does, unless there are
    accelerators for it."""
    calls = (e for e in walk(exprs) if e.kernel is not None and e.moves is None and not is_fold(e))
    return any(not runs_on_numpy(e) or (accelerated and runs_on_devices(e)) for e in calls)


def _compile_more(exprs: Sequence[Expr]) -> Lengths:
    """What is compiled although numpy could compute it. JAX is imported while the first tensors are read. Where it
    would start accelerators, which nothing here needs, there is no such call."""
    found = {} if may_be_found() else lengths_to_compile(exprs)
    if found:
        begin_import_of_jax()
    return found


def count_tasks(roots: Sequence[Root], items: Iterable[WorkItem]) -> int:
    """Tensors that are written or looked at, where those that share a call on whole operands count as one."""
    shared = (task for item in items if isinstance(item.work, Whole) for task in item.work.tasks)
    return len(roots) - sum(len(task.roots) - 1 for task in shared)


# --- Items ------------------------------------------------------------------------------------------------------------


def _run(items: Sequence[WorkItem], machine: Machine, bench: Bench, roots: Sequence[Root]) -> None:
    """All items but folds, which are in `bench.known`. Of several processes, each performs its own items, stage by
    stage, and takes the answers of the others."""
    items = [item for item in items if not isinstance(item.work, Fold)]
    if bench.resumption is not None:
        items = _without_kept(items, bench, bench.resumption)
    if bench.hosts.count == 1:
        _perform_all(items, machine, bench)
        return
    for stage in stages(items, bench.hosts):
        _perform_shared(stage, machine, bench)
        _perform_all([item for item in stage.mine if sharers_of(item) == 1], machine, bench)
        exchange(stage.mine, roots, bench)
        if not bench.hosts.number:  # who publishes counts what all have written
            for item in stage.others:
                keep(item, bench)


def _perform_shared(stage: Stage, machine: Machine, bench: Bench) -> None:
    """The items of a stage that this process computes together with others, one by one, in the order that all have."""
    mine = {item.key for item in stage.mine}
    if bench.resumption is not None:
        bench.resumption.begin(item for item in stage.shared if item.key in mine)
    for item in stage.shared:
        if bench.stop.is_set():
            raise Stopped
        meeting = SharedCalls(item, bench.hosts, bench.own, machine.host_bytes)
        for part in parts_of(item.work):
            done = perform(part, bench, meeting, passing=item.key in mine)
            if item.key in mine:
                settle(done, item.key, item.reads + item.writes, bench)


def _perform_all(items: Sequence[WorkItem], machine: Machine, bench: Bench) -> None:
    """Perform items on threads, and settle their results in order."""
    if bench.resumption is not None:
        bench.resumption.begin(items)
    blas = one_thread() if any(isinstance(item.work, Whole) for item in items) else nullcontext()
    with blas, Pool(machine.threads, machine.host_bytes, bench.stop) as pool:
        for item, part, moved in _parts_in_turn(items, bench, pool.drain):
            then = partial(settle, item=item.key, moved=moved, bench=bench)
            pool.submit(item.host_bytes, partial(perform, part, bench), then)
        pool.drain()
    if bench.stop.is_set():
        raise Stopped


def _without_kept(items: Sequence[WorkItem], bench: Bench, resumption: Resumption) -> Sequence[WorkItem]:
    """The items that are left to do, when those are reported that an interrupted run has done."""
    kept = agree_on_kept(resumption.kept(items), bench.hosts)
    if (note := resumption.note(kept, items)) is not None:
        bench.tell(Noted(note))
    for item in items:
        if item.key in kept:
            keep(item, bench)
    return [item for item in items if item.key not in kept]


def _parts_in_turn(
    items: Iterable[WorkItem], bench: Bench, wait: Callable[[], None]
) -> Iterator[tuple[WorkItem, Light | Whole, int]]:
    """The parts of items, and the bytes that each moves, in the order in which they begin. Of items of one kind, those
    that write to different files take turns, one part of each at a time: threads that write to one file wait for each
    other.

    `wait` is called before items that need others: it returns when all that came before are done.
    """
    for (_, _, needs), alike in groupby(items, lambda item: (type(item.work), item.writes > 0, item.needs)):
        if needs:
            wait()
        lanes: dict[tuple[int, int] | None, list[WorkItem]] = {}
        for item in alike:
            first = next((t.end for t in deliveries(item.work) if isinstance(t.end, Put | Transfer)), None)
            lane = first and (first.publication, bench.writers[first.publication].lane(first.name))
            lanes.setdefault(lane, []).append(item)
        queues = [(share for item in lane for share in _shares(item)) for lane in lanes.values()]
        yield from (part for turn in zip_longest(*queues) for part in turn if part is not None)


def _shares(item: WorkItem) -> Iterator[tuple[WorkItem, Light | Whole, int]]:
    """The parts of an item, each with its share of the bytes that the item reads and writes."""
    parts, moved = parts_of(item.work), item.reads + item.writes
    for at, part in enumerate(parts):
        yield item, part, moved * (at + 1) // len(parts) - moved * at // len(parts)
