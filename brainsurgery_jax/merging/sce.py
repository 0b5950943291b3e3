"""SCE: select entries in which task vectors vary, calculate a weight for each model, erase signs of the minority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.selection import order_statistics
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import (
    by_element,
    constant_of,
    deltas,
    double,
    namespace,
    rounded,
    sums,
    total,
    widen,
    widened,
)
from brainsurgery_jax.protocol import TensorExpr

FLOOR = 1e-6
"""Sums of weights below this are not divided by."""


def _variance(parts: Sequence[Array]) -> Array:
    """The variance of the models at every element."""
    n = constant_of(len(parts), parts[0])
    mean = total(parts) / n
    return total([(part - mean) ** 2 for part in parts]) / n


def _derive(xs: Sequence[Array], static: Mapping[str, Any]) -> list[Array]:
    return [widen(_variance(deltas(xs, static["exact"])))]


def _place(size: int, nonzero: Any, static: Mapping[str, Any], at: int) -> tuple[Any]:
    return (size - (static["topk"] * nonzero) // 1,)


least_variance = order_statistics("sce_threshold", _derive, _place, lambda params: (1, 1))


def _selected(xs: Sequence[Array], count: int, exact: bool) -> list[Array]:
    """The task vectors of models, with zeros where they vary less than what comes after them says."""
    parts = deltas(xs[: 1 + count], exact)
    if len(xs) == 1 + count:
        return parts
    variance = _variance(parts)
    out = (variance < xs[-1].astype(variance.dtype)) | (variance == 0)
    return [namespace(part).where(out, constant_of(0, part), part) for part in parts]


def _energies(xs: Sequence[Array], static: Mapping[str, Any]) -> Array:
    parts = _selected(xs, static["count"], static["exact"])
    return namespace(xs[0]).stack([(double(part) ** 2).sum() for part in parts])


def _shares(found: Array, static: Mapping[str, Any]) -> Array:
    xp, mean = namespace(found), found / max(1, static["size"])
    low = mean.sum() < FLOOR
    return xp.where(low, 1 / static["count"], mean / xp.where(low, np.float64(1), mean.sum()))


model_shares = sums("sce_weights", _energies, _shares, lambda avals, params: params["count"])


@by_element("sce")
def erase_and_add(*xs: Array, count: int, dtype: DType, exact: bool) -> Array:
    """The weighted mean of what agrees with the sign of the sum. Behind the base and the models come the least variance
    that is selected, if there is one, and the weights."""
    base, *_ = widened(xs[:1], exact)
    xp = namespace(base)
    weights = widened(xs[-count:], exact)
    parts = _selected(xs[:-count], count, exact)
    sign = xp.sign(total(parts))
    kept = [xp.where(xp.sign(part) * sign < 0, constant_of(0, part), part) for part in parts]
    there = [xp.where((xp.sign(part) == sign), w, constant_of(0, part)) for part, w in zip(parts, weights, strict=True)]
    divisor = xp.maximum(total(there), constant_of(FLOOR, base))
    agreeing = [xp.where(sign == 0, constant_of(0, part), part) for part in kept]
    return rounded(base + total([p * w for p, w in zip(agreeing, weights, strict=True)]) / divisor, dtype)


def sce(merging: Merging) -> TensorExpr:
    """The entries of largest variance, weighted by each model's share of their squares, where signs agree."""
    topk, count = merging.number("select_topk"), len(merging.models)
    chosen: list[TensorExpr] = []
    if topk < 1:
        chosen = [merging.spread(merging.fold(least_variance, topk=topk), 0)]
    shares = merging.fold(model_shares, *chosen, count=count, size=merging.aval.size)
    return merging.by_element(erase_and_add, *chosen, *merging.each(shares), count=count)


SCE = MergeMethod(
    "sce", sce, "task vectors weighted by their energy where models vary most and signs agree",
    "https://arxiv.org/abs/2408.07990",
    {"select_topk": MergeParameter(1.0, "share of the varying entries that are selected", low=0, high=1)},
    base="needed",
)  # fmt: skip
