"""Linear combinations of tensors whose coefficients follow from inner products of them."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import Merging
from brainsurgery_jax.merging.tensors import by_element, rounded, total, widened
from brainsurgery_jax.protocol import TensorExpr


@by_element("combination")
def add_multiples(*xs: Array, count: int, based: bool, dtype: DType, exact: bool) -> Array:
    """The sum of `count` tensors, each times what stands at its place in as many more; if `based` of their differences
    to the first, which is added."""
    first, factors = widened(xs[:-count], exact), widened(xs[-count:], exact)
    vectors = [x - first[0] for x in first[1:]] if based else list(first)
    merged = total([x * factor for x, factor in zip(vectors, factors, strict=True)])
    return rounded(first[0] + merged if based else merged, dtype)


def combined(merging: Merging, coefficients: TensorExpr) -> TensorExpr:
    """The models, or what they differ by from the base, each times its coefficient, added up (with the base)."""
    count = len(merging.models)
    factors = merging.each(coefficients)
    return merging.by_element(add_multiples, *factors, count=count, based=merging.base is not None)
