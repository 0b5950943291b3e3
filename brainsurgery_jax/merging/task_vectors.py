"""Task vectors, what models differ by from their base: made sparse, weighted, with or without a vote, added up.

Reference: Ilharco et al., Editing models with task arithmetic, 2022, https://arxiv.org/abs/2212.04089.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import Merging, ModelTensor
from brainsurgery_jax.merging.selection import order_statistics
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.sparsify import KeepBand, KeepGiven, KeepNone, KeepRandom, Sparsifier
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
from brainsurgery_jax.op import Params
from brainsurgery_jax.ops.shape import concatenate, with_shape
from brainsurgery_jax.protocol import TensorExpr

WEIGHT = MergeParameter(1.0, "factor of each task vector", each=True)
DENSITY = MergeParameter(1.0, "share of the entries of a task vector that are kept", each=True, low=0, high=1)
SCALE = MergeParameter(1.0, "factor of the sum of task vectors")
NORMALIZE = "whether the sum is divided by that of the weights"
THRESHOLD = MergeParameter("tensor", "`tensor`, or `all`: entries are ranked within a tensor, or among all parameters")
RESCALE = "`inverse`: what is kept is divided by its probability; `l1`: to the sum of magnitudes before; or `no`"


class Summing(NamedTuple):
    """How task vectors become one. `weights` and `kept`: of each model."""

    weights: tuple[float, ...]
    kept: tuple[Sparsifier, ...]
    scale: float
    consensus: bool
    normalize: bool


def _votes(parts: Sequence[Array], summing: Summing) -> tuple[Array, Array | float]:
    """The sum of what agrees with the sign of the sum of all, and the weights of what took part."""
    xp = namespace(parts[0])
    majority = total(parts)
    sign = xp.where(majority >= 0, constant_of(1, majority), constant_of(-1, majority))
    dropped = [part * sign <= 0 for part in parts]
    kept = [xp.where(out, constant_of(0, part), part) for part, out in zip(parts, dropped, strict=True)]
    if not summing.normalize:
        return total(kept), 1.0
    zero = constant_of(0, majority)
    weights = [xp.where(out, zero, constant_of(w, majority)) for w, out in zip(summing.weights, dropped, strict=True)]
    return total(kept), total(weights)


@by_element("merged_task_vectors")
def add_task_vectors(base: Array, *rest: Array, summing: Summing, dtype: DType, exact: bool) -> Array:
    """The base and the sum of task vectors. `rest`: the models, then what their sparsifiers take."""
    xp, count = namespace(base), len(summing.weights)
    start, *models = widened((base, *rest[:count]), exact)
    extras, parts = list(rest[count:]), []
    for x, weight, kept in zip(models, summing.weights, summing.kept, strict=True):
        own, extras = extras[: kept.extras], extras[kept.extras :]
        delta = kept.apply(x - start, own)
        parts.append(delta * constant_of(weight, delta))
    if summing.consensus:
        merged, divisor = _votes(parts, summing)
    else:
        merged, divisor = total(parts), sum(summing.weights)
        divisor = divisor if abs(divisor) >= 1e-8 else 1.0
    if summing.normalize:
        by = constant_of(divisor, merged) if isinstance(divisor, float) else divisor
        merged = merged / xp.where(by == 0, constant_of(1, merged), by)
    if summing.scale != 1:
        merged = merged * constant_of(summing.scale, merged)
    return rounded(start + merged, dtype)


def summed(
    merging: Merging, kept: Sequence[Sparsifier], extras: Sequence[TensorExpr], *, consensus: bool, normalize: bool
) -> TensorExpr:
    """The base and the sum of what is kept of the task vectors. `extras`: what the sparsifiers take, in their order."""
    summing = Summing(merging.numbers("weight"), tuple(kept), merging.number("lambda"), consensus, normalize)
    return merging.by_element(add_task_vectors, *extras, summing=summing)


# --- Thresholds -------------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """The ranks of a task vector that are kept, as shares: so many of the largest are left out, so many then kept."""

    density: float
    without: float = 0.0

    def places(self, size: int) -> tuple[int, int]:
        """The first and the last that is kept, in the order of magnitudes."""
        count, top = max(1, int(self.density * size)), int(self.without * size)
        top = max(0, min(top, size - count))
        return size - top - count, size - top - 1


def _magnitudes(xs: Sequence[Array], static: Mapping[str, Any]) -> list[Array]:
    return [widen(abs(d)) for d in deltas(xs, static["exact"])]


def _bounds(size: int, nonzero: Any, static: Mapping[str, Any], at: int) -> tuple[Any, ...]:
    return static["ranks"][at].places(size)[: static["bounds"]]


bounds_of = order_statistics("thresholds", _magnitudes, _bounds, lambda p: (len(p["ranks"]), p["bounds"]))
"""The least magnitude that is kept of each task vector; with `bounds: 2` the greatest as well."""


def bands(merging: Merging, ranks: Sequence[Kept], bounds: int) -> tuple[list[Sparsifier], list[TensorExpr]]:
    """What keeps these ranks of the task vectors of the models, at least one entry; and the tensors that it takes."""
    over_all = merging.word("threshold", ("tensor", "all")) == "all"
    group = merging.everything if over_all else (merging,)
    kept = [Sparsifier() if rank.density > 0 else KeepNone() for rank in ranks]
    partial = [at for at, rank in enumerate(ranks) if 0 < rank.density < 1 or (rank.density and rank.without)]
    if not partial:
        return kept, []
    chosen = tuple(ranks[at] for at in partial)
    extras = _found(merging, group, partial, ranks=chosen, bounds=bounds)
    for at in partial:
        kept[at] = KeepBand(bounds=bounds)
    return kept, extras


def _found(merging: Merging, group: Sequence[Merging], models: Sequence[int], **static: Any) -> list[TensorExpr]:
    """The bounds of some models, at every element."""
    own = [_flat(group, None), *(_flat(group, at) for at in models)]
    values = merging.view.apply(bounds_of, *own, **static, exact=not merging.compat)
    return list(merging.each(values))


def _flat(group: Sequence[Merging], model: int | None) -> TensorExpr:
    """The tensor of a model (None: of the base) or, of several tensors, all of them as one vector."""
    if len(group) == 1:
        (only,) = group
        return only.operands()[0 if model is None else 1 + model]
    work = max((m.work for m in group), key=lambda dtype: dtype.bits)
    parts = []
    for m in group:
        e = m.expressions[0 if model is None else 1 + model]
        parts.append(m.view.apply(with_shape, m.in_dtype(e, work), shape=(e.aval.size,)))
    return group[0].view.apply(concatenate, *parts, axis=0)


# --- Rescaling --------------------------------------------------------------------------------------------------------

LEAST_SUM = 1e-7
"""Sums of magnitudes below this are not rescaled to."""


def _magnitude_sums(xs: Sequence[Array], static: Mapping[str, Any]) -> Array:
    (delta,) = deltas(xs[:2], static["exact"])
    kept = static["kept"].keep(delta, xs[2:])
    xp = namespace(delta)
    return xp.stack([xp.sum(abs(double(delta))), xp.sum(abs(double(kept)))])


def _ratio(found: Array, static: Mapping[str, Any]) -> Array:
    xp = namespace(found)
    small = (found < LEAST_SUM).any()
    return xp.where(small, np.float64(1), found[:1] / xp.where(small, np.float64(1), found[1:]))


l1_factor = sums("l1_factor", _magnitude_sums, _ratio, lambda avals, params: 1)
"""By how much a task vector must be multiplied to have the sum of magnitudes that it had before it became sparse."""


def with_l1_factor(
    merging: Merging, model: ModelTensor, kept: Sparsifier, extras: Sequence[TensorExpr]
) -> tuple[Sparsifier, list[TensorExpr]]:
    """What is kept of a model, scaled to the sum of magnitudes before; and the tensors that it takes."""
    assert merging.base is not None
    found = (merging.base.expr, model.expr, *extras)
    operands = [merging.in_dtype(e, merging.work) for e in found]
    factor = merging.view.apply(l1_factor, *operands, kept=kept, exact=not merging.compat)
    return _rescaled(kept), [*extras, merging.spread(factor, 0)]


def _rescaled(kept: Sparsifier) -> Sparsifier:
    match kept:
        case KeepRandom(density=density):
            return KeepRandom(True, density)
        case KeepGiven():
            return KeepGiven(True)
        case KeepBand(bounds=bounds):
            return KeepBand(True, bounds)
    return Sparsifier(True)


def task_parameters(**more: MergeParameter) -> dict[str, MergeParameter]:
    """The parameters of methods that add task vectors up, and more."""
    return {"weight": WEIGHT, **more, "lambda": SCALE}


__all__ = [
    "DENSITY",
    "NORMALIZE",
    "RESCALE",
    "THRESHOLD",
    "KeepGiven",
    "KeepNone",
    "KeepRandom",
    "Kept",
    "Params",
    "Sparsifier",
    "bands",
    "summed",
    "task_parameters",
    "with_l1_factor",
]
