"""Matrices of inner products: scaled so that units do not matter, and whether they are symmetric."""

from __future__ import annotations

from typing import Any

from brainsurgery_jax._lazy import Array, Flag, jnp, np
from brainsurgery_jax.numerics.math import on_host

_ASYMMETRY = 2.0**-10
"""What a correlation and its mirror image may differ by, since sums are in another order."""


def scale_to_ones(a: Array) -> Array:
    """A matrix scaled to a diagonal of ones, where that is positive."""
    xp: Any = np if on_host(a) else jnp
    diagonal = xp.diagonal(a)
    scale = 1 / xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    return a * scale[:, None] * scale[None, :]


def is_symmetric(a: Array, stored: float) -> Flag:
    """Whether a matrix is symmetric up to rounding, to the precision `stored` too. A triangle, which some tools store
    alone, is not."""
    unit = scale_to_ones(a)
    return (abs(unit - unit.T) <= max(_ASYMMETRY, 2 * stored)).all()


def precision(dtype: Any) -> float:
    """The distance from one to the next number that a dtype of floats has."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps)
