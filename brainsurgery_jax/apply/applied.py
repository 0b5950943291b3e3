"""A plan lowered onto pytrees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import State
from brainsurgery_jax.plan.model import PlanData


class Applied(NamedTuple):
    """A plan lowered onto trees: the state after its last step, the leaves, and the alias whose tree is returned."""

    plan: PlanData
    state: State
    given: Mapping[Expr, Any]
    alias: str

    @property
    def names(self) -> Mapping[str, Expr]:
        """The tensors of the tree to return."""
        return self.state.spaces[self.alias].names

    @property
    def came(self) -> Mapping[str, Any]:
        """The leaves that the tree to return came with, by name."""
        return {e.name: leaf for e, leaf in self.given.items() if e.source == self.alias}
