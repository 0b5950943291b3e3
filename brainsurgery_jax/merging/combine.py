"""Linear combinations of tensors whose coefficients follow from inner products of them."""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import Merging
from brainsurgery_jax.merging.tensors import (
    Params,
    accumulate,
    add_to,
    are_plain,
    base_and_deltas,
    by_values,
    rounded,
    scale_widened,
    widened,
)
from brainsurgery_jax.op import Avals
from brainsurgery_jax.protocol import TensorExpr


def _are_alike(avals: Avals, params: Params) -> bool:
    """That compiled code gives the bits of numpy: of sums that are not divided, like those of task vectors."""
    return are_plain(avals, params) and not params["divided"]


@by_values("combination", alike=_are_alike)
def add_multiples(
    xs: Sequence[Array], values: Sequence[Array], *, based: bool, divided: bool, dtype: DType, exact: bool
) -> Array:
    """The sum of tensors, each times its number in a vector; if `based` of their differences to the first, which is
    added. `divided`: the sum is divided by one more number."""
    (factors,) = values
    base, vectors = base_and_deltas(xs, exact) if based else (None, widened(xs, exact))
    pairs = enumerate(zip(vectors, xs[1:] if based else xs, strict=True))
    merged = accumulate([scale_widened(x, given, factors[at].astype(x.dtype)) for at, (x, given) in pairs])
    if divided:
        merged /= factors[len(vectors)].astype(merged.dtype)
    return rounded(merged if base is None else add_to(base, merged), dtype)


def combined(merging: Merging, coefficients: TensorExpr, *, divided: bool = False) -> TensorExpr:
    """The models, or what they differ by from the base, each times its coefficient, added up (with the base).
    `divided`: the last coefficient is what the sum is divided by."""
    return merging.with_values(add_multiples, [coefficients], based=merging.base is not None, divided=divided)
