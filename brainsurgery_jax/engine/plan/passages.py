"""Which tensors go by together, so that an assert and an output, or two outputs, read what they share once."""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax.engine.plan.work import Passage
from brainsurgery_jax.graph.expr import Expr, walk

MOST_READ = 16
"""Tensors that are read together at most, to bound what is held."""


def join(passages: Sequence[Passage]) -> list[Passage]:
    """Passages over one range that read a tensor in common as one, in the order of the first of each."""
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
