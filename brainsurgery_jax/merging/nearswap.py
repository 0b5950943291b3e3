"""Nearswap: take over what another model differs by only a little."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import by_element, constant_of, namespace, rounded, times, widened
from brainsurgery_jax.protocol import TensorExpr

FLOOR = 1e-6
"""The least difference that is divided by."""


@by_element("nearswap")
def swap_near(base: Array, other: Array, *, t: float, dtype: DType, exact: bool) -> Array:
    """`w * other + (1 - w) * base`, `w` being t over the difference, from 0 to 1."""
    a, b = widened((base, other), exact)
    xp = namespace(a)
    apart = xp.maximum(abs(a - b), constant_of(FLOOR, a))
    # Torch divides a number by a tensor by way of the reciprocal, and does not round the number to the tensor's dtype.
    share = constant_of(t, a) / apart if exact else times(constant_of(1, a) / apart, t)
    share = xp.minimum(xp.maximum(share, constant_of(0, a)), constant_of(1, a))  # numpy's clip would widen short floats
    return rounded(share * b + (constant_of(1, a) - share) * a, dtype)


def nearswap(merging: Merging) -> TensorExpr:
    """Entries that differ by at most `t` are taken from the other model, larger differences in part."""
    return merging.by_element(swap_near, t=merging.number("t"))


NEARSWAP = MergeMethod(
    "nearswap", nearswap, "entries of a model that differ little from the base",
    "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    {"t": MergeParameter(None, "differences up to this are taken over", low=0)}, most=1, base="needed",
    by_element=True,
)  # fmt: skip
