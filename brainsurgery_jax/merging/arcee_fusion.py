"""Arcee fusion: take over the entries of another model whose importance stands out, by an exact threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import FLOAT64, Aval, DType
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.rows import by_rows
from brainsurgery_jax.merging.selection import order_statistics
from brainsurgery_jax.merging.tensors import (
    Params,
    anywhere,
    by_values,
    deltas,
    double,
    kept_where,
    namespace,
    rounded,
    widen,
    widened,
)
from brainsurgery_jax.op import Avals, kernel
from brainsurgery_jax.ops._constants import broadcast
from brainsurgery_jax.protocol import TensorExpr

EPS = 1e-8
"""Added to probabilities."""

SPREAD = 1.5
"""Quartile ranges above the median from which on an entry stands out."""


def _rows_of(avals: Avals, params: Params) -> Aval:
    return Aval((*avals[0].shape[:-1], 1), avals[0].dtype)


@by_rows("row_divergence", _rows_of)
def row_divergence(base: Array, x: Array) -> Array:
    """The Kullback-Leibler divergence of each row of `x` from that of the base, both as softmax, as a column."""
    p, q = (_softmax(double(y)) + EPS for y in (x, base))
    xp = namespace(p)
    return xp.sum(p * xp.log(p / q), axis=-1, keepdims=True).astype(base.dtype)


def _softmax(x: Array) -> Array:
    xp = namespace(x)
    made = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return made / xp.sum(made, axis=-1, keepdims=True)


def _importance(xs: Sequence[Array], static: Mapping[str, Any]) -> list[Array]:
    (delta,) = deltas(xs[:2], static["exact"])
    return [widen(abs(delta) * xs[2].astype(delta.dtype))]


def _quartile_places(size: int, nonzero: Any, static: Mapping[str, Any], at: int) -> tuple[int, ...]:
    return tuple(int(share * (size - 1)) for share in (0.25, 0.5, 0.75))


quartiles = order_statistics("quartiles", _importance, _quartile_places, lambda params: (1, 3))


@kernel("fusion_threshold", result=lambda avals, params: (Aval((1,), FLOAT64),), host=anywhere)
def fusion_threshold(found: Array) -> Array:
    """The median and 1.5 times the range between the quartiles [3]; of two elements around such a place the lower."""
    return found[1:2] + SPREAD * (found[2:] - found[:1])


@by_values("arcee_fusion")
def fuse(xs: Sequence[Array], values: Sequence[Array], *, dtype: DType, exact: bool) -> Array:
    """The base, with the other's entries where their importance is at least that value."""
    start, other = widened(xs[:2], exact)
    (importance,) = _importance(xs, {"exact": exact})
    outstanding = ~(importance < values[0][0].astype(importance.dtype))
    return rounded(start + kept_where(outstanding, other - start), dtype)


def arcee_fusion(merging: Merging) -> TensorExpr:
    """Importance is the difference times the divergence of the row; the threshold is exact, so nothing is random."""
    view, own = merging.view, merging.aval
    base, x = (merging.in_dtype(e, merging.work) for e in merging.expressions)
    rows = view.apply(broadcast, view.apply(row_divergence, base, x), shape=own.shape)
    found = view.apply(fusion_threshold, merging.fold(quartiles, rows))
    return merging.with_values(fuse, [found], [rows])


ARCEE_FUSION = MergeMethod(
    "arcee_fusion", arcee_fusion, "entries of a model that stand out from the base by importance",
    "https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration", {},
    most=1, base="needed",
)  # fmt: skip
