"""Summaries of a tensor that reports print, by blocks.

How NaN is treated, here and elsewhere: it is a value like others. The least, the greatest and the mean of what holds
NaN are NaN, as are the sums, norms, extremes and quantiles that ops compute (`numerics/sums.py`, `numerics/ranks.py`).
No assert on values accepts it, since it satisfies no bound. Where checkpoints are compared it equals itself, at the
same place (`numerics/figures.py`).
"""

from __future__ import annotations

from math import nan

from brainsurgery_jax._lazy import np
from brainsurgery_jax.numerics.moments import MOMENTS, Moments
from brainsurgery_jax.reduction import Reduction


def _moments(x: np.ndarray) -> Moments:
    if np.iscomplexobj(x):  # which have no order
        return Moments(x.size, nan, nan, nan, nan, nan, 0, 0, 0)
    return MOMENTS.block(x)


STATISTICS = MOMENTS._replace(
    block=_moments,
    finish=lambda found: {"min": found.least, "max": found.greatest, "mean": found.mean},
    empty={"min": None, "max": None, "mean": None},
)
"""The least, the greatest and the mean value, in double precision; NaN for complex numbers."""

VALUES = Reduction(lambda x: [x], lambda a, b: a + b, lambda xs: np.concatenate(xs), None)
"""All elements, in row-major order."""
