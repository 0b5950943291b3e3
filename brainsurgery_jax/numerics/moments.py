"""Statistics of the values of a tensor in one pass, block by block: extremes, moments, norm, and counts of the unusual.

Means and spreads of blocks are joined by the pairwise update of Chan, Golub and LeVeque (1979), so a large mean costs
no digits of the deviation. How NaN is treated: see `summaries.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import hypot, inf, isfinite, nan, sqrt
from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.numerics.doubles import as_single
from brainsurgery_jax.numerics.squares import PIECE, squares_of_rows
from brainsurgery_jax.reduction import Reduction

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
class Moments:
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


class ValueExtent(NamedTuple):
    """The least and greatest finite element (infinite, the wrong way round, without one), and how many are NaN and
    infinite."""

    least: float
    greatest: float
    nans: int
    infs: int


def find_extent(x: np.ndarray) -> ValueExtent:
    """The extent of elements that are all looked at together."""
    least, greatest = float(x.min()), float(x.max())
    if isfinite(least) and isfinite(greatest):  # NaN would be both
        return ValueExtent(least, greatest, 0, 0)
    nans, infs = int(np.count_nonzero(np.isnan(x))), int(np.count_nonzero(np.isinf(x)))
    inner = x[np.isfinite(x)] if nans or infs else x
    ends = (float(inner.min()), float(inner.max())) if inner.size else (inf, -inf)
    return ValueExtent(*ends, nans, infs)


def widen_extent(a: ValueExtent, b: ValueExtent) -> ValueExtent:
    """The extent of the elements of both."""
    return ValueExtent(min(a.least, b.least), max(a.greatest, b.greatest), a.nans + b.nans, a.infs + b.infs)


def _length(y: np.ndarray, most: float) -> float:
    """The norm of an array whose largest magnitude is known. Squares of very large and small numbers are taken of their
    ratios to it."""
    if most == 0 or most - most != 0 or _SAFE[0] < most < _SAFE[1]:
        return sqrt(squares_of_rows(y))
    return most * sqrt(squares_of_rows(y / most))


def _piece(x: np.ndarray, wide: np.ndarray) -> Moments:
    """The moments of some elements, for which `wide` has room in double precision."""
    short = as_single(x)
    zeros = int(np.count_nonzero(short == 0))
    extent = find_extent(short)
    if extent.nans:
        return Moments(x.size, nan, nan, nan, nan, nan, zeros, extent.nans, extent.infs)
    y = wide[: x.size]
    np.copyto(y, short)
    least, greatest = (float(y.min()), float(y.max())) if extent.infs else (extent.least, extent.greatest)
    norm = _length(y, max(abs(least), abs(greatest)))
    mean = float(np.add.reduce(y)) / y.size
    if not extent.infs and mean - mean != 0:  # the sum overflows where the mean does not
        mean = float((y / y.size).sum())
    spread = nan if extent.infs else _spread(y, mean, norm)
    return Moments(x.size, least, greatest, mean, spread, norm, zeros, 0, extent.infs)


def _spread(y: np.ndarray, mean: float, norm: float) -> float:
    """The norm of the deviations from the mean. Where these are most of the norm, they follow from it: the squares that
    are subtracted are at most half, and cost one bit."""
    of_mean = abs(mean) * sqrt(y.size)
    if _SAFE[0] < norm < _SAFE[1] and 2 * of_mean * of_mean <= norm * norm:
        return sqrt(norm * norm - of_mean * of_mean)
    apart = y - mean
    return _length(apart, float(max(apart.max(), -apart.min())))


def _block(x: np.ndarray) -> Moments:
    wide = np.empty(min(x.size, PIECE))
    with np.errstate(all="ignore"):
        return reduce(_join, (_piece(x[at : at + PIECE], wide) for at in range(0, x.size, PIECE)))


def _join(a: Moments, b: Moments) -> Moments:
    size = a.size + b.size
    share = b.size / size
    mean = a.mean * (1 - share) + b.mean * share
    apart = (b.mean - a.mean) * sqrt(a.size * share)
    least, greatest = float(np.minimum(a.least, b.least)), float(np.maximum(a.greatest, b.greatest))
    return Moments(size, least, greatest, mean, _hypot(a.spread, b.spread, apart), _hypot(a.norm, b.norm),
                 a.zeros + b.zeros, a.nans + b.nans, a.infs + b.infs)  # fmt: skip


def _hypot(*lengths: float) -> float:
    """The root of the sum of squares; NaN if one is NaN, also beside infinity, which `math.hypot` prefers."""
    return nan if any(length != length for length in lengths) else hypot(*lengths)


def _finish(p: Moments) -> TensorStats:
    std = p.spread / sqrt(p.size)
    return TensorStats(p.size, p.least, p.greatest, p.mean, std, p.norm, p.zeros, p.nans, p.infs)


MOMENTS = Reduction(_block, _join, _finish, TensorStats(0, nan, nan, nan, nan, 0.0, 0, 0, 0))
"""The `TensorStats` of real numbers, without the effective rank."""
