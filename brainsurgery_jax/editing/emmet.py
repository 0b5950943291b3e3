"""EMMET: many facts, each met exactly. Gupta et al., A unified framework for model editing, 2024,
https://arxiv.org/abs/2403.14236, equation 9."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.editing.arrays import namespace, orthonormal_rows, solve, solve_positive
from brainsurgery_jax.editing.facts import Memories


def constrain_facts(facts: Memories) -> Array:
    """`R (K^T C^-1 K)^-1 K^T C^-1` (keys as columns): of all changes that give every value for its key the one that
    changes the outputs of other keys least; NaN where keys depend on each other. Without a covariance C is the
    identity. Of one fact it is ROME's."""
    keys, residuals = facts.keys, facts.residuals
    directions = keys.T if facts.covariance is None else solve_positive(facts.covariance, keys.T, facts.known_to)
    _, independent = orthonormal_rows(keys, facts.precision)
    change = residuals.T @ solve(keys @ directions, directions.T)
    return namespace(keys).where(independent, change, np.nan)
