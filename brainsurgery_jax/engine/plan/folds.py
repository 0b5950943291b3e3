"""Which folds all threads compute together, before anything that needs them."""

from __future__ import annotations

from collections.abc import Iterable

from brainsurgery_jax.graph.expr import Expr, is_fold, is_whole, passes_of, walk
from brainsurgery_jax.protocol import Known, Pending, Reduction

EARLY = 64 << 20
"""Bytes of operands from which on all threads compute a fold together. Smaller ones are computed by the task that needs
them, which finds what it read once more where the system keeps files."""


def question_of(exprs: tuple[Expr, ...], reduction: Reduction) -> Pending:
    """A question whose answer is wanted itself, not a verdict on it."""
    return Pending(exprs, reduction, lambda answer: Known(True))


def early_folds(exprs: Iterable[Expr]) -> list[list[Expr]]:
    """The folds of large tensors that need nothing held whole but folds before them, in levels: all threads go over
    their blocks before anything else is made. Other folds are computed by the task that needs them."""
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
    """What the first pass of a fold asks. The other passes go over the same blocks."""
    passes = passes_of(call)
    assert passes is not None
    return question_of(call.srcs, passes[0](None))
