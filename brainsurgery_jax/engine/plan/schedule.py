"""The order of work: folds of large tensors come first, roots that share a call on whole operands form a task, and
results are dropped when last used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.engine.plan.footprint import (
    FOLDS,
    HEAP,
    HOLES,
    box_cost,
    calling,
    item_bytes,
    looking,
    making_block,
    reading_gaps,
    worst_moment,
)
from brainsurgery_jax.engine.plan.segments import has_parts, tiles
from brainsurgery_jax.graph.chains import Chains
from brainsurgery_jax.graph.expr import Expr, asked_of, is_fold, is_whole, passes_of, walk
from brainsurgery_jax.index.boxes import Box, box_shape
from brainsurgery_jax.lower.program import Program
from brainsurgery_jax.protocol import Known, Pending, Reduction

EARLY = 64 << 20
"""Operand bytes from which all threads compute a fold together. A smaller fold is computed by the task that needs it;
its second read of the operands comes from the page cache."""


class Written(NamedTuple):
    """A root that is written: tensor `name` of publication number `publication`."""

    publication: int
    name: str
    expr: Expr

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return (self.expr,)

    @property
    def target(self) -> tuple[object, ...]:
        return self.publication, self.name


class Asked(NamedTuple):
    """A root that is summarised for an assert or a report: question number `number` of all."""

    question: Pending
    number: int = 0

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return asked_of(self.question)

    @property
    def target(self) -> tuple[object, ...]:
        return (self.number,)


Root = Written | Asked


class Task(NamedTuple):
    """Roots in order; before each, the calls to compute whole; after each, the calls whose results are released.

    `peak` is the projected peak memory in bytes, including operands and blocks; 0 if nothing is held whole: then each
    block has its own peak (`footprint.block_cost`).
    """

    roots: tuple[Root, ...]
    compute: tuple[tuple[Expr, ...], ...]
    release: tuple[tuple[Expr, ...], ...]
    peak: int


def roots_of(program: Program) -> Iterator[Root]:
    """The roots of a program: questions in plan order, then tensors in output order. A tensor that a question is about
    stays the node that it is, so that both share its parts."""
    questions = list(asked(q for check in program.checks for q in check.questions))
    yield from questions
    shared, chains = set(exprs_of(questions)), Chains()
    for number, publication in enumerate(program.publications):
        for name, e in publication.written.items():
            yield Written(number, name, e if e in shared else chains.shorten(e))


def exprs_of(roots: Iterable[Root]) -> list[Expr]:
    """The expressions that these roots are about."""
    return [e for root in roots for e in root.exprs]


def asked(questions: Iterable[Pending]) -> Iterator[Asked]:
    """Questions as roots, without those about tensors without elements, whose answers are known."""
    yield from (Asked(q, number) for number, q in enumerate(q for q in questions if not is_empty(q)))


def is_empty(question: Pending) -> bool:
    """Whether a question is about tensors without elements."""
    return not asked_of(question)[0].aval.size


def question_of(exprs: tuple[Expr, ...], reduction: Reduction) -> Pending:
    """A question without a verdict: the caller uses the answer itself."""
    return Pending(exprs, reduction, lambda answer: Known(True))


def early_folds(exprs: Iterable[Expr]) -> list[list[Expr]]:
    """The folds of large tensors, in levels: a fold needs no whole tensors, and only folds of earlier levels. All
    threads stream these operands before any other work. Other folds are computed by the task that needs them."""
    levels: dict[Expr, int | None] = {}
    found: dict[int, list[Expr]] = {}
    for e in walk(exprs):
        if e.kernel is None and not e.srcs:
            levels[e] = 0
            continue
        below = [levels[s] for s in e.srcs]
        level = None if None in below else max((n for n in below if n is not None), default=0)
        if is_fold(e) and level is not None and sum(s.aval.nbytes for s in e.srcs) > EARLY:
            found.setdefault(level, []).append(e)
            level += 1
        elif is_whole(e):
            level = None
        levels[e] = level
    return [found[level] for level in sorted(found)]


def first_question(call: Expr) -> Pending:
    """The question of the first pass of a fold. The other passes read the same blocks."""
    passes = passes_of(call)
    assert passes is not None
    return question_of(call.srcs, passes[0](None))


def in_full(question: Pending) -> Pending:
    """A question of all blocks, where a sample would do."""
    return replace(question, reduction=question.reduction._replace(sampled=False))


def schedule(roots: Sequence[Root], known: Collection[Expr] = ()) -> list[Task]:
    """Tasks in the order of their first root; the roots of a task share a call that is computed whole. `known`: calls
    that are computed already."""
    calls = [_whole_calls(r.exprs, known) for r in roots]
    groups = _group(calls)
    return [_task([roots[i] for i in g], [calls[i] for i in g]) for g in groups]


def _whole_calls(exprs: tuple[Expr, ...], known: Collection[Expr]) -> tuple[Expr, ...]:
    if all(e.is_leaf for e in exprs):
        return ()
    return tuple(e for e in walk(exprs) if e.is_call and is_whole(e) and e not in known)


def _group(calls: Sequence[tuple[Expr, ...]]) -> list[list[int]]:
    """Indices of roots, grouped where they share a call (union-find)."""
    parent = list(range(len(calls)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Expr, int] = {}
    for i, own in enumerate(calls):
        for call in own:
            a, b = find(first.setdefault(call, i)), find(i)
            parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for i in range(len(calls)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def _task(roots: Sequence[Root], calls: Sequence[tuple[Expr, ...]]) -> Task:
    if not any(calls):
        nothing = ((),) * len(roots)
        return Task(tuple(roots), nothing, nothing, 0)
    seen: set[Expr] = set()
    compute = [tuple(c for c in own if c not in seen and not seen.add(c)) for own in calls]
    last = {call: at for at, own in enumerate(calls) for call in own}
    release = [tuple(c for c in last if last[c] == at) for at in range(len(roots))]
    task = Task(tuple(roots), tuple(compute), tuple(release), 0)
    return task._replace(peak=peak_of(task, taking_alone))


def peak_of(task: Task, taking: Callable[[Expr], int]) -> int:
    """Bytes held at the worst moment, by going through the task's order, where each call takes so many beside what is
    held."""
    held = worst = 0
    for root, made, gone in zip(task.roots, task.compute, task.release, strict=True):
        for call in made:
            worst = max(worst, held + taking(call))
            held += sum(a.nbytes for a in call.avals)
        worst = max(worst, held + _passing(root.exprs) + _asking(root))
        held -= sum(a.nbytes for call in gone for a in call.avals)
    return with_holes(worst)


def with_holes(nbytes: int) -> int:
    """Bytes that a process takes for arrays of so many."""
    return nbytes + nbytes // HOLES + min(nbytes // HOLES, HEAP)


def taking_alone(call: Expr) -> int:
    """Bytes that one process takes to compute a call: operands that are not yet held, results, and workspace."""
    return _folding(call) if is_fold(call) else _reading(call) + calling(call)


def _reading(call: Expr) -> int:
    """Bytes of the operands of a call that are not yet held, and of the blocks that they are assembled from."""
    fresh = [s for s in call.srcs if s.is_leaf or (s.is_call and not is_whole(s))]
    return sum(s.aval.nbytes for s in fresh) + max((_passing((s,)) for s in fresh if s.is_call), default=0)


def _folding(call: Expr) -> int:
    """Bytes that a fold takes: a block of each operand, its partial results, and the results."""
    asking = looking(first_question(call), _length(call.srcs[0]))
    return _passing(call.srcs) + asking + FOLDS * sum(a.nbytes for a in call.avals)


def _passing(exprs: Sequence[Expr]) -> int:
    """Bytes that a block, or part, of each tensor takes, with all operands down to leaves and arrays that are held
    whole."""
    if any(map(has_parts, exprs)):
        return sum(max(box_cost((e,), box).peak for box in _unlike(tiles(e))) for e in exprs)
    made_of: dict[Expr, tuple[Expr, ...]] = {}
    stack = list(exprs)
    while stack:
        e = stack.pop()
        if e not in made_of:
            made_of[e] = e.srcs if e.is_call and not is_whole(e) else ()
            stack.extend(made_of[e])
    order = [(e, made_of[e]) for e in walk(exprs) if e in made_of]
    return worst_moment(order, lambda e: _length(e) * item_bytes(e), _taking)


def _unlike(boxes: Iterable[Box]) -> Iterable[Box]:
    """One box of each shape."""
    return {box_shape(box): box for box in boxes}.values()


def _taking(e: Expr) -> int:
    """Bytes that computing a block takes; of an array that is held whole, a copy: it may not be in row-major order."""
    if e.is_pick or is_whole(e):
        return e.aval.nbytes
    return making_block(e, _length(e)) + max((reading_gaps(s) for s in e.srcs if e.moves is not None), default=0)


def _length(e: Expr) -> int:
    return min(blocks.BLOCK, e.aval.size)


def _asking(root: Root) -> int:
    return looking(root.question, _length(root.exprs[0])) if isinstance(root, Asked) else 0
