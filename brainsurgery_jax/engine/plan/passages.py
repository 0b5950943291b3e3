"""Tensors that are streamed together, so that an assert and an output, or two outputs, read a shared tensor once."""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax.engine.plan.work import Passage
from brainsurgery_jax.graph.expr import Expr, walk

MOST_READ = 16
"""The most tensors that are read together, which bounds memory."""


def join(passages: Sequence[Passage]) -> list[Passage]:
    """Join passages that cover the same range and share a tensor. The result is in the order of their first members."""
    joined: dict[int, Passage] = {}
    reads: dict[int, set[Expr]] = {}
    home: dict[tuple[int, int, Expr], int] = {}
    for at, p in enumerate(passages):
        exprs = [e for sink in p.sinks for e in sink.exprs]
        leaves = {e for e in walk(exprs) if e.is_leaf and e.aval.size == p.stop - p.start}
        near = (home.get((p.start, p.stop, leaf)) for leaf in leaves)
        place = next((n for n in near if n is not None and len(reads[n] | leaves) <= MOST_READ), at)
        joined[place] = p._replace(sinks=(*joined[place].sinks, *p.sinks)) if place in joined else p
        reads.setdefault(place, set()).update(leaves)
        home |= {(p.start, p.stop, leaf): place for leaf in leaves}
    return [joined[place] for place in sorted(joined)]
