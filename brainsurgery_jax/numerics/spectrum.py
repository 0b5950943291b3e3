"""The singular values of a matrix or of a difference, and the rank that they are worth."""

from __future__ import annotations

from math import exp

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import FLOAT64, Aval
from brainsurgery_jax.numerics.ladder import values_workspace
from brainsurgery_jax.numerics.lapack import singular_values
from brainsurgery_jax.numerics.math import on_host, widen
from brainsurgery_jax.op import Avals, Params, kernel


def effective_rank(values: np.ndarray) -> float:
    """The exponential of the entropy of all singular values, falling, as shares of their sum (Roy and Vetterli, The
    effective rank, 2007); 0 for zeros, NaN if one is NaN."""
    if not values[0]:
        return 0.0
    shares = values / values[0]
    shares = shares / shares.sum()
    logs = np.log(np.where(shares == 0, 1.0, shares))
    return exp(-float(np.sum(shares * logs)))


def has_spectrum(*avals: Aval) -> bool:
    """Whether these are matrices of floats of one shape, which can be factorized."""
    first, *others = avals
    fit = all(aval.dtype.is_float and aval.shape == first.shape for aval in (first, *others))
    return fit and len(first.shape) == 2 and first.size > 0


def _values_aval(avals: Avals, params: Params) -> Avals:
    return (Aval((min(avals[0].shape),), FLOAT64),)


def _workspace(avals: Avals, params: Params) -> int:
    """Bytes for a widened difference besides those of the decomposition."""
    return values_workspace(avals[0]) + 8 * avals[0].size * len(avals)


@kernel(result=_values_aval, host=lambda avals, params: True, workspace=_workspace)
def measure_spectrum(x: Array, *subtracted: Array) -> Array:
    """The singular values of a matrix, less another one if it is given, falling [min(m, n)]; NaN if not finite."""
    wide = widen(x)
    for y in subtracted:
        wide = wide - widen(y)
    xp = wide.__array_namespace__()
    finite = xp.all(xp.isfinite(wide))
    if on_host(x) and not wide.any():
        return np.zeros(min(x.shape))
    if on_host(x) and not finite:
        return np.full(min(x.shape), np.nan)
    return xp.where(finite, singular_values(wide).astype(np.float64), np.nan)
