"""An output tensor as consecutive segments: byte runs of files that are copied as they are, and ranges to compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.store.base import FileRun


class Segment(NamedTuple):
    """Elements of an output from `at` on: a run of bytes in a file, or elements `start:stop` of an expression."""

    at: int
    run: FileRun | None
    expr: Expr
    start: int
    stop: int


def segments(root: Expr) -> Iterator[Segment]:
    """The segments of a tensor, in row-major order. Structural ops are unfolded from the outside in, to the leaves."""
    stack: list[tuple[Expr, int, int, int]] = [(root, 0, root.aval.size, 0)]
    while stack:
        e, start, stop, at = stack.pop()
        if start >= stop:
            continue
        if e.kind == "leaf":
            yield Segment(at, e.source.file_run(e.name, start, stop), e, start, stop)
            continue
        runs = e.moves.runs(tuple(s.aval for s in e.srcs), start, stop) if e.moves is not None else None
        if runs is None:
            yield Segment(at, None, e, start, stop)
            continue
        inner = []
        for run in runs:
            inner.append((e.srcs[run.src], run.start, run.stop, at))
            at += run.stop - run.start
        stack.extend(reversed(inner))
