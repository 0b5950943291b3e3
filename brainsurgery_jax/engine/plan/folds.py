"""Large folds: all threads compute them together, before any work that needs their values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from brainsurgery_jax.graph.expr import Expr, is_fold, is_whole, passes_of, walk
from brainsurgery_jax.protocol import Known, Pending, Reduction

EARLY = 64 << 20
"""Operand bytes from which all threads compute a fold together. A smaller fold is computed by the task that needs it;
its second read of the operands comes from the page cache."""


def question_of(exprs: tuple[Expr, ...], reduction: Reduction) -> Pending:
    """A question without a verdict: the caller uses the answer itself."""
    return Pending(exprs, reduction, lambda answer: Known(True))


def early_folds(exprs: Iterable[Expr]) -> list[list[Expr]]:
    """The folds of large tensors, in levels: a fold needs no whole tensors, and only folds of earlier levels. All
    threads stream these operands before any other work. Other folds are computed by the task that needs them."""
    levels: dict[Expr, int | None] = {}
    found: dict[int, list[Expr]] = {}
    for e in walk(exprs):
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
