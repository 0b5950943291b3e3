"""Weighted averages of models, "model soups"."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import by_element, constant_of, rounded, total, widened
from brainsurgery_jax.protocol import TensorExpr


@by_element("weighted_mean")
def weighted_mean(*xs: Array, weights: tuple[float, ...], divisor: float, dtype: DType, exact: bool) -> Array:
    """The weighted sum of tensors, divided by a number."""
    parts = [
        x if weight == 1 else x * constant_of(weight, x) for x, weight in zip(widened(xs, exact), weights, strict=True)
    ]
    merged = total(parts)
    return rounded(merged if divisor == 1 else merged / constant_of(divisor, merged), dtype)


def linear(merging: Merging) -> TensorExpr:
    """`sum(weight * x)`, divided by the sum of the weights if `normalize`. Raises Refusal."""
    weights = merging.numbers("weight")
    normalize = merging.flag("normalize")
    if normalize and sum(weights) == 0:
        message = f"the weights for '{merging.name}' add up to 0, and `normalize` divides by their sum"
        raise Refusal("merge-parameter", message, key="models", hint="Say `parameters: {normalize: false}`.")
    if normalize and len(set(weights)) == 1:  # equal ones are no factors, so that equal models stay as they are
        weights = (1.0,) * len(weights)
    return merging.by_element(weighted_mean, weights=weights, divisor=sum(weights) if normalize else 1.0)


LINEAR = MergeMethod(
    "linear", linear, "weighted average of models", "https://arxiv.org/abs/2203.05482",
    {"weight": MergeParameter(1.0, "factor of each model", each=True),
     "normalize": MergeParameter(True, "whether the sum is divided by that of the weights")},
)  # fmt: skip
