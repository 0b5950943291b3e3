"""Weighted averages of models, "model soups"."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import (
    Params,
    accumulate,
    add_to,
    are_plain,
    base_and_deltas,
    by_element,
    by_values,
    constant_of,
    multiply,
    rounded,
    scale_widened,
    total,
    widened,
)
from brainsurgery_jax.op import Avals
from brainsurgery_jax.protocol import TensorExpr


def _are_alike(avals: Avals, params: Params) -> bool:
    """That compiled code gives the bits of numpy: weights are of ordinary size, so that nothing on the way is
    subnormal."""
    return are_plain(avals, params) and all(2**-8 <= abs(weight) <= 2**8 for weight in params["weights"])


@by_values("weighted_sum", alike=_are_alike)
def weighted_sum(
    xs: Sequence[Array], values: Sequence[Array], *, weights: tuple[float, ...], dtype: DType, exact: bool
) -> Array:
    """The weighted sum of tensors."""
    triples = zip(widened(xs, exact), xs, weights, strict=True)
    merged = total([x if w == 1 else scale_widened(x, given, constant_of(w, x)) for x, given, w in triples])
    return rounded(merged, dtype)


@by_values("weighted_mean", alike=_are_alike)
def weighted_mean(
    xs: Sequence[Array], values: Sequence[Array], *, weights: tuple[float, ...], dtype: DType, exact: bool
) -> Array:
    """The weighted mean of tensors, from the one with the largest weight on: of equal tensors it is these."""
    shares = [w / sum(weights) for w in weights]
    near = max(range(len(shares)), key=lambda at: abs(shares[at]))
    others = [at for at in range(len(shares)) if at != near]
    merged, parts = base_and_deltas([xs[near], *(xs[at] for at in others)], exact)
    parts = [multiply(part, constant_of(shares[at], part)) for part, at in zip(parts, others, strict=True)]
    return rounded(add_to(merged, accumulate(parts)) if parts else merged, dtype)


@by_element("fused_mean")
def fused_mean(*xs: Array, weights: tuple[float, ...], dtype: DType, exact: bool) -> Array:
    """The weighted mean of tensors in float32, a product and a sum being rounded together, as mergekit has it. That of
    float64 stays float64, each being rounded."""
    work = np.float64 if xs[0].dtype == np.float64 else np.float32
    factors = [work(w) for w in weights]
    merged = xs[0].astype(work) * factors[0]
    for x, factor in zip(xs[1:], factors[1:], strict=True):
        merged = (merged.astype(np.float64) + x.astype(np.float64) * np.float64(factor)).astype(work)
    return rounded(merged / sum(factors, work(0)), dtype)


def linear(merging: Merging) -> TensorExpr:
    """`sum(weight * x)`, divided by the sum of the weights if `normalize`. Raises Refusal."""
    weights = merging.numbers("weight")
    if not merging.flag("normalize"):
        return merging.with_values(weighted_sum, weights=weights)
    if merging.compat:
        refuse_no_sum(merging, weights)
        return merging.by_element(fused_mean, weights=weights)
    return mean(merging, weights)


def mean(merging: Merging, weights: Sequence[float]) -> TensorExpr:
    """The mean of the models by weights. Raises Refusal."""
    refuse_no_sum(merging, weights)
    return merging.with_values(weighted_mean, weights=tuple(weights))


def refuse_no_sum(merging: Merging, weights: Sequence[float]) -> None:
    """Refuse weights that add up to 0, but for what rounding leaves, where a method divides by their sum."""
    if abs(fsum(weights)) <= 1e-12 * fsum(map(abs, weights)):
        message = f"the weights for '{merging.name}' add up to 0, and {merging.settings.method} divides by their sum"
        switch = next((name for name in ("normalize", "normalize_weights") if name in merging.settings.parameters), "")
        plain = f", or `parameters: {{{switch}: false}}` for their sum" if switch else ""
        raise Refusal("merge-parameter", message, key="models", hint=f"Give weights that do not add up to 0{plain}.")


LINEAR = MergeMethod(
    "linear", linear, "weighted average of models", "https://arxiv.org/abs/2203.05482",
    {"weight": MergeParameter(1.0, "factor of each model", each=True),
     "normalize": MergeParameter(True, "whether the sum is divided by that of the weights")},
    by_element=True,
)  # fmt: skip
