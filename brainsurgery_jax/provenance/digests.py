"""Digests of the tensors of an open checkpoint, by reading them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from brainsurgery_jax.engine.plan.schedule import question_of
from brainsurgery_jax.engine.run.budget import Budget
from brainsurgery_jax.engine.run.execute import answers
from brainsurgery_jax.graph.expr import Graph
from brainsurgery_jax.reduction import Reduction
from brainsurgery_jax.store.base import Source


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
