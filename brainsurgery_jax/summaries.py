"""Summaries of a tensor that reports print, by blocks.

How NaN is treated, here and elsewhere: it is a value like others. The least, the greatest and the mean of what holds
NaN are NaN, as are the sums, norms, extremes and quantiles that ops compute (`numerics/sums.py`, `numerics/ranks.py`).
No assert on values accepts it, since it satisfies no bound. Where checkpoints are compared it equals itself, at the
same place (`numerics/figures.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.protocol import Reduction


class Statistics(NamedTuple):
    """The least and greatest value of a part of a tensor, their sum and number."""

    least: float
    greatest: float
    total: float
    size: int


def _sums(x: np.ndarray) -> Statistics:
    if np.iscomplexobj(x):  # which have no order
        return Statistics(np.nan, np.nan, np.nan, x.size)
    with np.errstate(invalid="ignore"):
        y = x.astype(np.float64)
        return Statistics(float(y.min()), float(y.max()), float(y.sum()), y.size)


def _join(a: Statistics, b: Statistics) -> Statistics:
    least, greatest = float(np.minimum(a.least, b.least)), float(np.maximum(a.greatest, b.greatest))
    return Statistics(least, greatest, a.total + b.total, a.size + b.size)


STATISTICS = Reduction(
    _sums,
    _join,
    lambda found: {"min": found.least, "max": found.greatest, "mean": found.total / found.size},
    {"min": None, "max": None, "mean": None},
)
"""The least, the greatest and the mean value, in double precision; NaN for complex numbers."""

VALUES = Reduction(lambda x: [x], lambda a, b: a + b, lambda xs: np.concatenate(xs), None)
"""All elements, in row-major order."""
