"""Task vectors, what models differ by from their base: made sparse, weighted, with or without a vote, added up.

Reference: Ilharco et al., Editing models with task arithmetic, 2022, https://arxiv.org/abs/2212.04089.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import Merging, ModelTensor
from brainsurgery_jax.merging.selection import order_statistics
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.sparsify import KeepBand, KeepNone, Sparsifier, Thinned
from brainsurgery_jax.merging.tensors import (
    Params,
    accumulate,
    add_to,
    are_plain,
    base_and_deltas,
    by_values,
    constant_of,
    deltas,
    double,
    kept_where,
    magnitude,
    multiply,
    namespace,
    rounded,
    sums,
    total,
    widen,
)
from brainsurgery_jax.op import Avals
from brainsurgery_jax.ops.shape import concatenate, section, with_shape
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


def _agreeing(parts: Sequence[Array]) -> list[Array]:
    """Where each part has the sign of the sum of all, which counts as positive at zero. NaN agrees."""
    majority = total(parts) >= 0  # false where a part is NaN, as is what is said of it
    return [((part > 0) == majority) & (part != 0) for part in parts]


def _divisor(weights: Sequence[float], agreeing: Sequence[Array], like: Array) -> Array:
    """The sum of the weights of what agrees, 1 where nothing does."""
    if len(set(weights)) == 1:
        found = sum((a.astype(np.int8) for a in agreeing[1:]), agreeing[0].astype(np.int8))
        if weights[0] > 0:  # where nothing agrees, 0 is divided, by whatever
            found = (found + (found == 0).astype(np.int8)).astype(like.dtype)
            return found if weights[0] == 1 else found * constant_of(weights[0], like)
        found = found.astype(like.dtype) * constant_of(weights[0], like)
    else:
        found = total([a.astype(like.dtype) * constant_of(w, like) for w, a in zip(weights, agreeing, strict=True)])
    return found + (found == 0).astype(like.dtype)


def _are_alike(avals: Avals, params: Params) -> bool:
    """That compiled code elects signs and adds up as numpy does, to the bit. It takes a sixth of the time. A sum that
    is divided by one number is left to numpy: XLA multiplies by the reciprocal. Weights are of ordinary size, so that
    nothing on the way is subnormal."""
    summing = params["summing"]
    numbers = (*summing.weights, summing.scale)
    return (
        (summing.consensus or not summing.normalize)
        and are_plain(avals, params)
        and all(type(kept) in (Sparsifier, KeepBand) and not kept.rescaled for kept in summing.kept)
        and all(2**-8 <= number <= 2**8 for number in numbers)
    )


@by_values("merged_task_vectors", alike=_are_alike)
def add_task_vectors(
    xs: Sequence[Array], values: Sequence[Array], *, summing: Summing, dtype: DType, exact: bool
) -> Array:
    """The base and the sum of task vectors. Behind base and models come what their sparsifiers take."""
    count = 1 + len(summing.weights)
    start, changes = base_and_deltas(xs[:count], exact)
    more, small, parts = list(xs[count:]), list(values), []
    for change, weight, kept in zip(changes, summing.weights, summing.kept, strict=True):
        delta = kept.apply(change, more[: kept.tensors], small[: kept.values])
        del more[: kept.tensors], small[: kept.values]
        parts.append(delta if weight == 1 else multiply(delta, constant_of(weight, delta)))
    if summing.consensus:
        agreeing = _agreeing(parts)
        merged = accumulate([kept_where(a, part) for a, part in zip(agreeing, parts, strict=True)])
        if summing.normalize:
            merged /= _divisor(summing.weights, agreeing, merged)
    else:
        merged, by = accumulate(parts), sum(summing.weights)
        if summing.normalize and abs(by) >= 1e-8:
            merged /= constant_of(by, merged)
    if summing.scale != 1:
        merged = multiply(merged, constant_of(summing.scale, merged))
    return rounded(add_to(start, merged), dtype)


def summed(merging: Merging, thinned: Sequence[Thinned], *, consensus: bool, normalize: bool) -> TensorExpr:
    """The base and the sum of what is kept of the task vectors."""
    kept = tuple(one.kept for one in thinned)
    summing = Summing(merging.numbers("weight"), kept, merging.number("lambda"), consensus, normalize)
    tensors = [e for one in thinned for e in one.tensors]
    values = [e for one in thinned for e in one.values]
    return merging.with_values(add_task_vectors, values, tensors, summing=summing)


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
    return [widen(magnitude(d)) for d in deltas(xs, static["exact"])]


def _bounds(size: int, nonzero: Any, static: Mapping[str, Any], at: int) -> tuple[Any, ...]:
    return static["ranks"][at].places(size)[: static["bounds"]]


bounds_of = order_statistics("thresholds", _magnitudes, _bounds, lambda p: (len(p["ranks"]), p["bounds"]))
"""The least magnitude that is kept of each task vector; with `bounds: 2` the greatest as well."""


def bands(merging: Merging, ranks: Sequence[Kept], bounds: int) -> list[Thinned]:
    """What keeps these ranks of the task vectors of the models, at least one entry. Raises Refusal."""
    over_all = merging.word("threshold", ("tensor", "all")) == "all"
    group = merging.everything if over_all else (merging,)
    found = [Thinned(Sparsifier() if rank.density > 0 else KeepNone()) for rank in ranks]
    partial = [at for at, rank in enumerate(ranks) if 0 < rank.density < 1 or (rank.density and rank.without)]
    if partial:
        operands = [_flat(group, None), *(_flat(group, at) for at in partial)]
        static = {"ranks": tuple(ranks[at] for at in partial), "bounds": bounds, "exact": not merging.compat}
        values = merging.view.apply(bounds_of, *operands, **static)
        for number, at in enumerate(partial):
            own = merging.view.apply(section, values, axis=0, start=number * bounds, stop=(number + 1) * bounds)
            found[at] = Thinned(KeepBand(), (), (own,))
    return found


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
    kept = static["kept"].keep(delta, xs[2:], ())
    xp = namespace(delta)
    return xp.stack([xp.sum(abs(double(delta))), xp.sum(abs(double(kept)))])


def _ratio(found: Array, static: Mapping[str, Any]) -> Array:
    xp = namespace(found)
    small = (found < LEAST_SUM).any()
    return xp.where(small, np.float64(1), found[:1] / xp.where(small, np.float64(1), found[1:]))


l1_factor = sums("l1_factor", _magnitude_sums, _ratio, lambda avals, params: 1)
"""By how much a task vector must be multiplied to have the sum of magnitudes that it had before it became sparse."""


def with_l1_factor(merging: Merging, model: ModelTensor, thinned: Thinned) -> Thinned:
    """What is kept of a model, scaled to the sum of magnitudes before."""
    assert merging.base is not None and not thinned.values
    found = (merging.base.expr, model.expr, *thinned.tensors)
    operands = [merging.in_dtype(e, merging.work) for e in found]
    factor = merging.view.apply(l1_factor, *operands, kept=thinned.kept, exact=not merging.compat)
    return Thinned(replace(thinned.kept, rescaled=True), thinned.tensors, (factor,))


def task_parameters(**more: MergeParameter) -> dict[str, MergeParameter]:
    """The parameters of methods that add task vectors up, and more."""
    return {"weight": WEIGHT, **more, "lambda": SCALE}
