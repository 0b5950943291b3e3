"""MEMIT: many facts by least squares. Meng et al., Mass-editing memory in a transformer, 2022,
https://arxiv.org/abs/2210.07229, equation 14."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, Flag
from brainsurgery_jax.editing.arrays import anywhere, like_first, solve_positive
from brainsurgery_jax.editing.facts import NOT_POSITIVE, Memories, check_facts, edit_facts, fact_space
from brainsurgery_jax.op import Number, kernel


def insert_facts(facts: Memories, *, share: Array, weight: Array) -> Array:
    """`R K^T (weight C + K K^T)^-1` (keys as columns), of a share of the residuals: the change with the least sum of
    squared errors on the facts and on what the covariance stands for."""
    keys, residuals = facts.keys, facts.residuals * share
    products = keys.T @ keys
    known = products if facts.covariance is None else weight * facts.covariance + products
    return solve_positive(known, keys.T @ residuals).T


@kernel("memit", check=check_facts, result=like_first, host=anywhere, workspace=fact_space, guarded=True,
        refusal=f"{NOT_POSITIVE}, or a tensor holds NaN or infinity")  # fmt: skip
def edit_matrix(
    w: Array, *facts: Array, share: Number, weight: Number, transposed: bool, residual: bool,
) -> tuple[Array, Flag]:  # fmt: skip
    """A matrix with facts inserted; `facts` are their keys, values and covariance."""
    update = lambda facts: insert_facts(facts, share=share, weight=weight)  # noqa: E731
    return edit_facts(update, (w, *facts), transposed=transposed, residual=residual)
