"""Arcee fusion: take over the entries of another model whose importance stands out, by an exact threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import FLOAT64, Aval, DType
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.rows import by_rows, in_work
from brainsurgery_jax.merging.selection import order_statistics
from brainsurgery_jax.merging.tensors import (
    anywhere,
    by_values,
    deltas,
    double,
    kept_where,
    namespace,
    rounded,
    rounding,
    widen,
    widened,
)
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.op import kernel
from brainsurgery_jax.protocol import TensorExpr

EPS = 1e-8
"""Added to probabilities."""

SPREAD = 1.5
"""Quartile ranges above the median from which on an entry stands out."""


@by_rows("row_divergence", in_work, part=1 << 20)
def row_divergence(base: Array, x: Array, *, work: DType | None) -> Array:
    """The Kullback-Leibler divergence of each row of `x` from that of the base, both as softmax, at every entry of the
    row; with every step rounded to `work`, if that is given."""
    step = rounding(work)
    p, q = (step(step(_softmax(double(y))) + EPS) for y in (x, base))
    xp = namespace(p)
    found = xp.sum(step(p * step(xp.log(step(p / q)))), axis=-1, keepdims=True)
    return xp.broadcast_to(round_to(found, base.dtype), base.shape)


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
def fusion_threshold(found: Array, *, work: DType | None) -> Array:
    """The median and 1.5 times the range between the quartiles [3]; of two elements around such a place the lower.
    `work`: the dtype to which every step is rounded, if one is given."""
    step = rounding(work)
    return step(found[1:2] + step(SPREAD * step(found[2:] - found[:1])))


@by_values("arcee_fusion")
def fuse(xs: Sequence[Array], values: Sequence[Array], *, dtype: DType, exact: bool) -> Array:
    """The base, with the other's entries where their importance is at least that value."""
    start, other = widened(xs[:2], exact)
    (importance,) = _importance(xs, {"exact": exact})
    outstanding = ~(importance < values[0][0].astype(importance.dtype))
    return rounded(start + kept_where(outstanding, other - start), dtype)


def arcee_fusion(merging: Merging) -> TensorExpr:
    """Importance is the difference times the divergence of the row; the threshold is exact, so nothing is random."""
    view = merging.view
    base, x = (merging.in_dtype(e, merging.work) for e in merging.expressions)
    short = merging.work if merging.work.bits <= 16 else None
    rows = view.apply(row_divergence, base, x, work=short if merging.compat else None)
    found = view.apply(fusion_threshold, merging.fold(quartiles, rows), work=short)
    return merging.with_values(fuse, [found], [rows])


ARCEE_FUSION = MergeMethod(
    "arcee_fusion", arcee_fusion, "entries of a model that stand out from the base by importance",
    "https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration", {},
    most=1, base="needed",
)  # fmt: skip
