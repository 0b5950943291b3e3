"""Linear combinations of tensors whose coefficients follow from inner products of them."""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import Merging
from brainsurgery_jax.merging.tensors import by_values, rounded, total, widened
from brainsurgery_jax.protocol import TensorExpr


@by_values("combination")
def add_multiples(
    xs: Sequence[Array], values: Sequence[Array], *, based: bool, divided: bool, dtype: DType, exact: bool
) -> Array:
    """The sum of tensors, each times its number in a vector; if `based` of their differences to the first, which is
    added. `divided`: the sum is divided by one more number."""
    wide, (factors,) = widened(xs, exact), values
    vectors = [x - wide[0] for x in wide[1:]] if based else wide
    merged = total([x * factors[at].astype(x.dtype) for at, x in enumerate(vectors)])
    if divided:
        merged = merged / factors[len(vectors)].astype(merged.dtype)
    return rounded(wide[0] + merged if based else merged, dtype)


def combined(merging: Merging, coefficients: TensorExpr, *, divided: bool = False) -> TensorExpr:
    """The models, or what they differ by from the base, each times its coefficient, added up (with the base).
    `divided`: the last coefficient is what the sum is divided by."""
    return merging.with_values(add_multiples, [coefficients], based=merging.base is not None, divided=divided)
