"""ROME: one fact, as an edit of rank one. Meng et al., Locating and editing factual associations in GPT, 2022,
https://arxiv.org/abs/2202.05262, equation 2."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.editing.arrays import namespace, solve_positive
from brainsurgery_jax.editing.facts import Memories


def insert_fact(facts: Memories) -> Array:
    """`(v - W k) (C^-1 k)^T / (k^T C^-1 k)`: of all changes that give `v` for `k` the one that changes the outputs of
    other keys least. Without a covariance C is the identity."""
    key, residual = facts.keys[0], facts.residuals[0]
    direction = (
        key if facts.covariance is None else solve_positive(facts.covariance, key[:, None], facts.known_to)[:, 0]
    )
    return namespace(key).outer(residual, direction / (key @ direction))
