"""Digests of the tensors of an open checkpoint, by reading them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from brainsurgery_jax.engine.plan.schedule import question_of
from brainsurgery_jax.engine.run.budget import Budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.engine.run.pool import Pool
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.numerics.digest import LOCKED, PIECE
from brainsurgery_jax.provenance.watching import READ, PassingDigests
from brainsurgery_jax.reduction import Reduction
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.io.local import LocalFile

SHARE = 16 * PIECE
"""Elements that a thread reads at a time."""


def digests_of(
    source: Source, names: Collection[str], kind: Reduction[bytes, bytes], budget: Budget
) -> Mapping[str, bytes]:
    """The digest of each of these tensors, read within a budget on all its threads.

    Raises StoreError for what cannot be read, or changed meanwhile, and PlanError for a budget that is too small.
    """
    graph = Graph()
    leaves = {name: graph.leaf(source, name, source.header.tensors[name].aval) for name in names}
    # A tensor without elements has the answer `empty`, and is not asked for.
    asked = {name: question_of((leaf,), kind) for name, leaf in leaves.items() if leaf.aval.size}
    found = answers(list(asked.values()), budget)
    source.verify_unchanged()
    return {name: found[asked[name]] if name in asked else kind.empty for name in leaves}


def locked_digests(
    source: Source, names: Collection[str], budget: Budget, passing: PassingDigests | None = None
) -> Mapping[str, bytes]:
    """What a lock has of these tensors: `digests_of` with `LOCKED`. `passing`: digests of pieces that a run has taken;
    only the others are read.

    Bytes that lie in files of this machine as they are go through a small buffer for each thread. Fresh memory for each
    block takes longer than the digest.
    """
    passing = passing or PassingDigests({name: source.header.tensors[name].aval for name in names})
    with Pool(budget.threads, budget.host_bytes) as pool:
        for name in names:
            size = source.header.tensors[name].aval.size
            for start in range(0, size, SHARE):
                run = source.file_run(name, start, min(start + SHARE, size))
                if run is not None and isinstance(run.file, LocalFile):
                    pool.submit(READ, partial(passing.look_at_file, name, start, run), lambda _: None)
        pool.drain()
    found = {name: digest for name in names if (digest := passing.digest(name)) is not None}
    source.verify_unchanged()
    return {**found, **digests_of(source, [name for name in names if name not in found], LOCKED, budget)}
