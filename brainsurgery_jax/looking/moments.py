"""Statistics of the values of a tensor in one pass, block by block: extremes, moments, norm, and counts of the unusual.

Means and spreads of blocks are joined by the pairwise update of Chan, Golub and LeVeque (1979), so a large mean costs
no digits of the deviation. How NaN is treated: see `summaries.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import hypot, nan, sqrt

from brainsurgery_jax._lazy import np
from brainsurgery_jax.protocol import Reduction

PIECE = 1 << 17
"""Elements in double precision at a time."""

_SAFE = 1e-140, 1e140
"""Magnitudes of which the squares are neither lost nor infinite in double precision."""


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Statistics of a tensor of `size` elements, in double precision.

    `min`, `max`, `mean`, `std` (of the population) and `norm` (Frobenius) are NaN if an element is. `zeros`, `nans` and
    `infs` count elements. `effective_rank` is that of a matrix (see `Spectrum`), if it was asked for.
    """

    size: int
    min: float
    max: float
    mean: float
    std: float
    norm: float
    zeros: int
    nans: int
    infs: int
    effective_rank: float | None = None


@dataclass(frozen=True, slots=True)
class _Moments:
    """What is known of some of the elements. `spread` is the norm of their deviations from `mean`."""

    size: int
    least: float
    greatest: float
    mean: float
    spread: float
    norm: float
    zeros: int
    nans: int
    infs: int


def _length(y: np.ndarray) -> float:
    """The norm of an array. Squares of very large and small numbers are taken of their ratios to the largest."""
    most = float(np.abs(y).max())
    if most == 0 or most - most != 0 or _SAFE[0] < most < _SAFE[1]:
        return sqrt(float(np.dot(y, y)))
    return most * float(np.linalg.norm(y / most))


def _piece(x: np.ndarray) -> _Moments:
    y = x.astype(np.float64)
    zeros, nans, infs = (int(np.count_nonzero(found)) for found in (y == 0, np.isnan(y), np.isinf(y)))
    if nans:
        return _Moments(y.size, nan, nan, nan, nan, nan, zeros, nans, infs)
    least, greatest, norm = float(y.min()), float(y.max()), _length(y)
    mean = float(y.mean())
    if not infs and mean - mean != 0:  # the sum overflows where the mean does not
        mean = float((y / y.size).sum())
    spread = nan if infs else _length(y - mean)
    return _Moments(y.size, least, greatest, mean, spread, norm, zeros, nans, infs)


def _block(x: np.ndarray) -> _Moments:
    with np.errstate(all="ignore"):
        return reduce(_join, (_piece(x[at : at + PIECE]) for at in range(0, x.size, PIECE)))


def _join(a: _Moments, b: _Moments) -> _Moments:
    size = a.size + b.size
    share = b.size / size
    mean = a.mean * (1 - share) + b.mean * share
    apart = (b.mean - a.mean) * sqrt(a.size * share)
    least, greatest = float(np.minimum(a.least, b.least)), float(np.maximum(a.greatest, b.greatest))
    return _Moments(size, least, greatest, mean, _hypot(a.spread, b.spread, apart), _hypot(a.norm, b.norm),
                 a.zeros + b.zeros, a.nans + b.nans, a.infs + b.infs)  # fmt: skip


def _hypot(*lengths: float) -> float:
    """The root of the sum of squares; NaN if one is NaN, also beside infinity, which `math.hypot` prefers."""
    return nan if any(length != length for length in lengths) else hypot(*lengths)


def _finish(p: _Moments) -> TensorStats:
    std = p.spread / sqrt(p.size)
    return TensorStats(p.size, p.least, p.greatest, p.mean, std, p.norm, p.zeros, p.nans, p.infs)


MOMENTS = Reduction(_block, _join, _finish, TensorStats(0, nan, nan, nan, nan, 0.0, 0, 0, 0))
"""The `TensorStats` of real numbers, without the effective rank."""
