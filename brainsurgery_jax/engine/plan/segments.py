"""An output tensor as consecutive segments: byte runs of files that are copied as they are, and ranges to compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from brainsurgery_jax.graph.expr import Expr, cuts_of, is_whole, operand_avals
from brainsurgery_jax.index.moves import Run
from brainsurgery_jax.store.base import FileRun


class Segment(NamedTuple):
    """Elements of an output from `at` on: a run of bytes in a file, or elements `start:stop` of an expression."""

    at: int
    run: FileRun | None
    expr: Expr
    start: int
    stop: int


def segments(root: Expr) -> Iterator[Segment]:
    """The segments of a tensor, in row-major order. Structural ops are unfolded from the root down to the leaves."""
    stack: list[tuple[Expr, int, int, int]] = [(root, 0, root.aval.size, 0)]
    while stack:
        e, start, stop, at = stack.pop()
        if start >= stop:
            continue
        if e.is_leaf:
            yield Segment(at, e.source.file_run(e.name, start, stop), e, start, stop)
            continue
        runs = e.moves.runs(tuple(s.aval for s in e.srcs), start, stop) if e.moves is not None else None
        if runs is None or (stop - start == e.aval.size and _is_scattered(e, runs)):
            yield Segment(at, None, e, start, stop)
            continue
        inner = []
        for run in runs:
            inner.append((e.srcs[run.src], run.start, run.stop, at))
            at += run.stop - run.start
        stack.extend(reversed(inner))


def _is_scattered(e: Expr, runs: Sequence[Run]) -> bool:
    """Whether a tensor has operands with permuted axes, so that boxes are cheaper than blocks (`tiles`)."""
    return any(r.stop - r.start != e.srcs[r.src].aval.size for r in runs) and mixes(e)


def mixes(e: Expr) -> bool:
    """Whether any operand of a block of `e` permutes axes, or is computed in its own parts."""
    return any(_mixes(node) for node in streamed_below(e))


def _mixes(e: Expr) -> bool:
    return cuts_of(e) is not None if e.moves is None else e.moves.mixes(operand_avals(e))


def streamed_below(e: Expr) -> Iterator[Expr]:
    """The calls that compute a block of a tensor, down to leaves and arrays that are held whole."""
    seen: set[Expr] = set()
    stack = [e]
    while stack:
        node = stack.pop()
        if node in seen or not node.is_call or is_whole(node):
            continue
        seen.add(node)
        yield node
        stack.extend(node.srcs)
