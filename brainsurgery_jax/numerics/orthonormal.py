"""Orthonormal bases of blocks of columns."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, np

DEFICIENT = 1e-10
"""Squared length, relative to the longest direction of a block, below which a direction is rounding noise."""


def orthonormal(y: Array, basis: Array) -> Array:
    """An orthonormal basis of the columns of `y` less their part in the span of `basis`.

    Columns of zeros stand for dependent ones. All is done twice, since the first scaling magnifies what rounding left.
    Reference: Stathopoulos and Wu, A block orthogonalization procedure with constant synchronization requirements,
    2002, https://doi.org/10.1137/S1064827500370883.
    """
    xp = y.__array_namespace__()
    y = y / or_one(xp.max(xp.abs(y)))  # squares stay in range
    for dtype in (np.float64, y.dtype):  # the squares of a block that is not yet orthonormal span a wide range
        y = y - basis @ (basis.T @ y)
        wide = y.astype(dtype)
        size, vectors = xp.linalg.eigh(wide.T @ wide)
        there = size > DEFICIENT * size[-1]
        scale = xp.where(there, 1 / xp.sqrt(xp.where(there, size, xp.ones_like(size))), xp.zeros_like(size))
        y = y @ (vectors * scale[None, :]).astype(y.dtype)
    return y


def or_one(x: Array) -> Array:
    """`x`, but one where it is zero."""
    xp = x.__array_namespace__()
    return xp.where(x > 0, x, xp.ones_like(x))
