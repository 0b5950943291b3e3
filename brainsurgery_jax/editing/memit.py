"""MEMIT: many facts by least squares. Meng et al., Mass-editing memory in a transformer, 2022,
https://arxiv.org/abs/2210.07229, equation 14."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.editing.arrays import solve
from brainsurgery_jax.editing.facts import Facts


def insert_facts(facts: Facts, *, share: Array, weight: Array) -> Array:
    """`R K^T (weight C + K K^T)^-1` (keys as columns), of a share of the residuals: the change with the least sum of
    squared errors on the facts and on what the covariance stands for."""
    keys, residuals = facts.keys, facts.residuals * share
    products = keys.T @ keys
    known = products if facts.covariance is None else weight * facts.covariance + products
    return solve(known, keys.T @ residuals).T
