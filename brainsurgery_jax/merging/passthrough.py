"""Passthrough: one model as it is, or scaled."""

from __future__ import annotations

from brainsurgery_jax.merging.linear import weighted_sum
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.protocol import TensorExpr


def passthrough(merging: Merging) -> TensorExpr:
    """`scale * x`."""
    (model,) = merging.models
    scale = merging.number("scale", model)
    if scale == 1:
        return merging.in_dtype(model.expr, merging.dtype)
    return merging.with_values(weighted_sum, weights=(scale,))


PASSTHROUGH = MergeMethod(
    "passthrough", passthrough, "one model, or a multiple of it", "",
    {"scale": MergeParameter(1.0, "factor of the tensor", each=True)}, most=1, by_element=True,
)  # fmt: skip
