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
    by_values,
    constant_of,
    deltas,
    double,
    kept_where,
    namespace,
    rounded,
    rounding,
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


least_variance = order_statistics("sce_threshold", _derive, _place, lambda params: (1, 1), by_nonzero=True)


def _select(xs: Sequence[Array], count: int, exact: bool) -> list[Array]:
    """The task vectors of models, with zeros where they vary less than what comes after them says."""
    parts = deltas(xs[: 1 + count], exact)
    if len(xs) == 1 + count:
        return parts
    variance = _variance(parts)
    chosen = ~(variance < xs[-1].astype(variance.dtype)) & (variance != 0)
    return [kept_where(chosen, part) for part in parts]


def _energies(xs: Sequence[Array], static: Mapping[str, Any]) -> Array:
    parts = _select(xs, static["count"], static["exact"])
    squares = [double(part) ** 2 if static["exact"] else double(part * part) for part in parts]
    return namespace(xs[0]).stack([square.sum() for square in squares])


def _shares(found: Array, static: Mapping[str, Any]) -> Array:
    xp, step = namespace(found), rounding(static["work"])
    mean = step(found / max(1, static["size"]))
    whole = step(mean.sum())
    low = whole < FLOOR
    return xp.where(low, 1 / static["count"], step(mean / xp.where(low, np.float64(1), whole)))


model_shares = sums("sce_weights", _energies, _shares, lambda avals, params: params["count"])


@by_values("sce")
def erase_and_add(xs: Sequence[Array], values: Sequence[Array], *, count: int, dtype: DType, exact: bool) -> Array:
    """The weighted mean of what agrees with the sign of the sum. The values are the weights and, if entries are
    selected, the least variance of these."""
    (base,), weights = widened(xs[:1], exact), values[0].astype(xs[0].dtype if not exact else widen(xs[0]).dtype)
    parts = _select([*xs, *(value[0] for value in values[1:])], count, exact)
    majority = total(parts)
    agreeing = [((part > 0) & (majority > 0)) | ((part < 0) & (majority < 0)) | (part != part) for part in parts]
    divisor = total([a.astype(base.dtype) * weights[at] for at, a in enumerate(agreeing)])
    kept = [kept_where(a, part) for a, part in zip(agreeing, parts, strict=True)]
    merged = total([part * weights[at] for at, part in enumerate(kept)])
    return rounded(base + merged / namespace(base).maximum(divisor, constant_of(FLOOR, base)), dtype)


def sce(merging: Merging) -> TensorExpr:
    """The entries of largest variance, weighted by each model's share of their squares, where signs agree."""
    topk, count = merging.number("select_topk"), len(merging.models)
    chosen = [merging.fold(least_variance, topk=topk)] if topk < 1 else []
    everywhere = [merging.spread(least, 0) for least in chosen]
    shares = merging.fold(model_shares, *everywhere, count=count, size=merging.aval.size,
                          work=merging.dtype if merging.compat else None)  # fmt: skip
    return merging.with_values(erase_and_add, [shares, *chosen], count=count)


SCE = MergeMethod(
    "sce", sce, "task vectors weighted by their energy where models vary most and signs agree",
    "https://arxiv.org/abs/2408.07990",
    {"select_topk": MergeParameter(1.0, "share of the varying entries that are selected", low=0, high=1)},
    base="needed",
)  # fmt: skip
