"""Running a program: tasks one after another, outputs into staging, and nothing published before every check has passed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import reduce
from typing import Any, NamedTuple

from brainsurgery_jax.engine.evaluate import Evaluator
from brainsurgery_jax.engine.events import Finished, Listener, Published, Said, Started, Wrote, ignore
from brainsurgery_jax.engine.kernels import exact
from brainsurgery_jax.engine.schedule import Asked, Task, Written, roots_of, schedule
from brainsurgery_jax.engine.segments import Segment, segments
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.lower.fold import failed_assert
from brainsurgery_jax.lower.program import Check, Program, Publication
from brainsurgery_jax.op import Known, Pending, Reduction, Report, pendings, settle
from brainsurgery_jax.store.atomic import Staged, publish, stage
from brainsurgery_jax.store.base import Source, Writer
from brainsurgery_jax.store.safetensors_writer import SafetensorsWriter, plan_shards
from brainsurgery_jax.store.sidecars import copy_sidecars

COPIERS = 2
"""Threads that copy byte runs from file to file: two reach the disk's speed, more do not help."""


class Budget(NamedTuple):
    """What a run may use. `durable`: files are flushed to disk before they are published."""

    durable: bool = True


class Verdicts:
    """Answers as they come, judged and told in the order of the plan: the first failing assert is the error."""

    def __init__(self, checks: Sequence[Check], tell: Listener):
        self.waiting, self.tell = list(checks), tell
        self.answers: dict[Pending, Any] = {}

    def answer(self, question: Pending, value: Any) -> None:
        self.answers[question] = value
        self.deliver()

    def deliver(self) -> None:
        """Tell and judge every check whose answers, and those of all before it, are there."""
        while self.waiting and self._ready(self.waiting[0]):
            check = self.waiting.pop(0)
            match check.says:
                case str(text):
                    self.tell(Said(text))
                case Report(questions, text):
                    self.tell(Said(text([self.answers[q] for q in questions])))
                case verdict:
                    known = settle(verdict, self.answers)
                    assert known is not None
                    if not known.holds:
                        raise PlanError([failed_assert(check.step, known)])

    def _ready(self, check: Check) -> bool:
        says = check.says
        if isinstance(says, str):
            return True
        return all(q in self.answers for q in (says.pending if isinstance(says, Report) else pendings(says)))


class Writers:
    """The outputs of a program in staging, filled block by block; byte runs are copied by threads beside the computation."""

    def __init__(self, publications: Sequence[Publication], budget: Budget, tell: Listener, stack: ExitStack):
        self.publications, self.tell = publications, tell
        self.writers: list[Writer] = []
        self.published = False
        for p in publications:
            self.writers.append(_writer(p, budget))
            stack.callback(self._abort, self.writers[-1])
        self.copying: list[tuple[str, int, Future[None]]] = []
        self.threads = ThreadPoolExecutor(COPIERS, "copy")
        stack.callback(self.threads.shutdown, wait=True, cancel_futures=True)

    def _abort(self, writer: Writer) -> None:
        if not self.published:
            writer.abort()

    def write(self, root: Written, evaluator: Evaluator) -> None:
        """Write one tensor: its byte runs are handed to the copying threads, the rest is computed here."""
        writer = self.writers[root.publication]
        for segment in segments(root.expr):
            if segment.run is not None:
                self.copying.append(
                    (
                        root.name,
                        segment.run.nbytes,
                        self.threads.submit(writer.copy, root.name, segment.at, segment.run),
                    )
                )
            else:
                self._computed(writer, root.name, segment, evaluator)
        self.reap(wait=False)

    def _computed(self, writer: Writer, name: str, segment: Segment, evaluator: Evaluator) -> None:
        import numpy as np

        for start, block in evaluator.tiles(segment.expr, segment.start, segment.stop):
            data = np.asarray(block)
            writer.put(name, segment.at + start - segment.start, data)
            self.tell(Wrote(name, data.nbytes))

    def reap(self, *, wait: bool) -> None:
        """Report finished copies; an error in one is raised here."""
        while self.copying and (wait or self.copying[0][2].done()):
            name, nbytes, future = self.copying.pop(0)
            future.result()
            self.tell(Wrote(name, nbytes))

    def finish(self) -> list[Staged]:
        """Complete all outputs, side files included."""
        self.reap(wait=True)
        return [w.finish() for w in self.writers]


def _writer(p: Publication, budget: Budget) -> Writer:
    avals = {name: e.aval for name, e in p.tensors.items()}
    sharded = p.directory and len(plan_shards(avals, p.shard_bytes)) > 1
    staged = stage(p.path, overwrite=p.overwrite)
    writer = SafetensorsWriter(
        staged, avals, single_file=not p.directory, shard_bytes=p.shard_bytes if sharded else None, metadata=p.metadata,
        durable=budget.durable,
    )  # fmt: skip
    if p.sidecars_from is not None:
        copy_sidecars(p.sidecars_from, staged.staging)
    return writer


def answer(question: Pending, evaluator: Evaluator) -> Any:
    """The answer of a reduction: one pass over its tensors, block by block, merged in order."""
    import numpy as np

    exprs: tuple[Expr, ...] = question.exprs  # type: ignore[assignment]  # ops see nodes by a narrower protocol
    size = exprs[0].aval.size
    if not size:
        return question.reduction.empty
    blocks = zip(*(evaluator.tiles(e, 0, size) for e in exprs), strict=True)
    partial = (question.reduction.block(*(np.asarray(block) for _, block in tiles)) for tiles in blocks)
    return question.reduction.finish(reduce(question.reduction.merge, partial))


def run_task(task: Task, evaluator: Evaluator, writers: Writers | None, verdicts: Verdicts) -> None:
    """Compute what the task's roots share, serve the roots in order, and drop each result after its last use."""
    for root, compute, release in zip(task.roots, task.compute, task.release, strict=True):
        for call in compute:
            evaluator.compute(call)
        if isinstance(root, Asked):
            verdicts.answer(root.question, answer(root.question, evaluator))
        else:
            assert writers is not None
            writers.write(root, evaluator)
        for call in release:
            del evaluator.wholes[call]


def execute(program: Program, budget: Budget, tell: Listener) -> None:
    """Run a program: checks, outputs, publication. Raises PlanError or StoreError; then nothing was published.

    Tasks that only look come first, so that most failing asserts stop the run before anything is written.
    """
    tasks = schedule(list(roots_of(program)))
    tasks.sort(key=lambda t: any(isinstance(r, Written) for r in t.roots))
    tell(Started(sum(p.nbytes for p in program.publications), len(tasks)))
    verdicts, evaluator = Verdicts(program.checks, tell), Evaluator()
    looking = [t for t in tasks if not any(isinstance(r, Written) for r in t.roots)]
    with _context(tasks), ExitStack() as on_failure:
        verdicts.deliver()
        for task in looking:
            run_task(task, evaluator, None, verdicts)
        writers = Writers(program.publications, budget, tell, on_failure)
        for done, task in enumerate(tasks[len(looking) :], len(looking) + 1):
            run_task(task, evaluator, writers, verdicts)
            tell(Finished(len(tasks) - done))
        staged = writers.finish()
        assert not verdicts.waiting
        for source in _sources(tasks):
            source.verify_unchanged()
        publish(staged, durable=budget.durable)
        writers.published = True
    for p in program.publications:
        tell(Published(p.path, p.nbytes, len(p.tensors)))


def _context(tasks: Iterable[Task]) -> Any:
    """The 64-bit context, entered only if anything is computed: a plan of names never imports JAX."""
    computes = any(e.kernel is not None and e.moves is None for t in tasks for r in t.roots for e in walk(r.exprs))
    return exact() if computes else nullcontext()


def _sources(tasks: Iterable[Task]) -> list[Source]:
    return list(dict.fromkeys(e.source for t in tasks for r in t.roots for e in walk(r.exprs) if e.kind == "leaf"))


def numbers(exprs: Sequence[Expr]) -> Mapping[Expr, int]:
    """The values of integer scalars that steps need before they can be lowered."""
    keep = Reduction(lambda x: int(x[0]), max, int, 0)
    questions = {e: Pending((e,), keep, lambda value: Known(True)) for e in exprs}
    verdicts, evaluator = Verdicts((), ignore), Evaluator()
    with exact():
        for task in schedule([Asked(q) for q in questions.values()]):
            run_task(task, evaluator, None, verdicts)
    return {e: verdicts.answers[q] for e, q in questions.items()}
