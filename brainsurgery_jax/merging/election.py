"""Merges by one value for each entry of all task vectors: the largest (MagMax), the elected one (EMR), or the sum where
enough tasks need it (consensus masks); and one task vector in one bit (BitDelta)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import (
    by_element,
    by_values,
    constant_of,
    deltas,
    double,
    kept_where,
    namespace,
    rounded,
    sums,
    total,
    widened,
)
from brainsurgery_jax.protocol import TensorExpr

_SCALE = MergeParameter(1.0, "factor of the merged task vector")


@by_element("magmax")
def add_largest(*xs: Array, scale: float, dtype: DType, exact: bool) -> Array:
    """The base and, at each entry, the task vector of largest magnitude, the first of equal ones; NaN where one is."""
    (base,) = widened(xs[:1], exact)
    first, *others = deltas(xs, exact)
    xp, largest = namespace(base), first
    for part in others:
        largest = xp.where((abs(part) > abs(largest)) | (part != part), part, largest)
    return rounded(base + largest * constant_of(scale, largest), dtype)


def magmax(merging: Merging) -> TensorExpr:
    """`base + lambda * d`, `d` being the task vector of largest magnitude at each entry."""
    return merging.by_element(add_largest, scale=merging.number("lambda"))


# --- EMR --------------------------------------------------------------------------------------------------------------


def _elect(parts: Sequence[Array]) -> Array:
    """The sign of the sum with the largest magnitude among those of that sign."""
    xp = namespace(parts[0])
    sign = xp.sign(total(parts))
    sizes = [kept_where(part * sign > 0, abs(part)) for part in parts]
    largest = sizes[0]
    for size in sizes[1:]:
        largest = xp.maximum(largest, size)
    return largest * sign


def _task_sums(xs: Sequence[Array], static: Mapping[str, Any]) -> Array:
    parts = deltas(xs, static["exact"])
    own, elected = parts[static["task"]], _elect(parts)
    xp = namespace(own)
    masked = kept_where(own * elected > 0, abs(elected))
    return xp.stack([double(abs(own)).sum(), double(masked).sum()])


def _quotient(found: Array, static: Mapping[str, Any]) -> Array:
    xp = namespace(found)
    none = found[1:] == 0
    return xp.where(none, np.float64(1), found[:1] / xp.where(none, np.float64(1), found[1:]))


emr_rescaler = sums("emr_rescaler", _task_sums, _quotient, lambda avals, params: 1)


@by_values("emr")
def add_elected(xs: Sequence[Array], values: Sequence[Array], *, task: int, dtype: DType, exact: bool) -> Array:
    """The base and the elected task vector; of a task what agrees with its sign, times a value."""
    (base,), parts = widened(xs[:1], exact), deltas(xs, exact)
    elected = _elect(parts)
    if task < 0:
        return rounded(base + elected, dtype)
    masked = kept_where(parts[task] * elected > 0, elected)
    return rounded(base + masked * values[0][0].astype(masked.dtype), dtype)


def emr(merging: Merging) -> TensorExpr:
    """The elected task vector of all models; with `task` what its mask and its rescaler make of it for that model."""
    aliases = [model.alias for model in merging.models]
    task = merging.word("task", ("", *aliases))
    if not task:
        return merging.with_values(add_elected, [], task=-1)
    at = aliases.index(task)
    factor = merging.fold(emr_rescaler, task=at)
    return merging.with_values(add_elected, [factor], task=at)


# --- Consensus masks --------------------------------------------------------------------------------------------------


@by_element("consensus")
def add_agreed(*xs: Array, mask: float, least: int, scale: float, dtype: DType, exact: bool) -> Array:
    """The base and the sum of the task vectors, where at least so many tasks have it in their mask."""
    (base,) = widened(xs[:1], exact)
    parts = deltas(xs, exact)
    merged = total(parts)
    bound = constant_of(mask, merged)
    votes = [(abs(part) >= abs(merged - part) * bound).astype(np.int8) for part in parts]
    kept = kept_where((sum(votes[1:], votes[0]) >= least) | (merged != merged), merged)  # as is NaN
    return rounded(base + kept * constant_of(scale, kept), dtype)


def consensus(merging: Merging) -> TensorExpr:
    """The sum of task vectors without entries that fewer than `least` tasks need: the mask of a task is where its task
    vector is at least `mask` times as large as the sum of the others. Raises Refusal."""
    least = merging.whole("least")
    base = merging.base.alias if merging.base else ""
    count = len(merging.settings.own.keys() - {base})  # those of the step, though a tensor may have fewer
    if least > count:
        message = f"consensus keeps what `least: {least}` models need, and there {'are' if count > 1 else 'is'} {count}"
        hint = f"Name more models, or write `parameters: {{least: {count}}}`."
        raise Refusal("merge-parameter", message, key="parameters", hint=hint)
    return merging.by_element(add_agreed, mask=merging.number("mask"), least=least, scale=merging.number("lambda"))


# --- BitDelta ---------------------------------------------------------------------------------------------------------


def _size(xs: Sequence[Array], static: Mapping[str, Any]) -> Array:
    (part,) = deltas(xs, static["exact"])
    return double(abs(part)).sum()[None]


def _mean(found: Array, static: Mapping[str, Any]) -> Array:
    return found / max(1, static["size"])


mean_magnitude = sums("mean_magnitude", _size, _mean, lambda avals, params: 1)


@by_values("bitdelta")
def add_signs(xs: Sequence[Array], values: Sequence[Array], *, dtype: DType, exact: bool) -> Array:
    """The base, and a number with the sign of the task vector at each entry, minus where that is 0."""
    (base,), (part,) = widened(xs[:1], exact), deltas(xs, exact)
    signs = (part > 0).astype(base.dtype) * constant_of(2, base) - constant_of(1, base)
    return rounded(base + signs * values[0][0].astype(base.dtype), dtype)


def bitdelta(merging: Merging) -> TensorExpr:
    """A task vector of which only the signs and the mean magnitude are kept."""
    size = merging.fold(mean_magnitude, size=merging.aval.size)
    return merging.with_values(add_signs, [size])


MAGMAX = MergeMethod(
    "magmax", magmax, "task vector of largest magnitude at each entry", "https://arxiv.org/abs/2407.06322",
    {"lambda": _SCALE}, base="needed", by_element=True,
)  # fmt: skip
EMR = MergeMethod(
    "emr", emr, "elected task vector; with `task` masked and rescaled for one model",
    "https://arxiv.org/abs/2405.17461",
    {"task": MergeParameter("", "alias of the model that the result is for; without it the one for all")},
    base="needed",
)  # fmt: skip
CONSENSUS = MergeMethod(
    "consensus", consensus, "sum of task vectors where enough tasks need it", "https://arxiv.org/abs/2405.07813",
    {"mask": MergeParameter(0.4, "how large a task vector is to be beside the others", low=0),
     "least": MergeParameter(2, "tasks that need an entry, at least", low=1), "lambda": _SCALE}, base="needed",
    by_element=True,
)  # fmt: skip
BITDELTA = MergeMethod(
    "bitdelta", bitdelta, "one task vector as signs and one magnitude", "https://arxiv.org/abs/2402.10193", {},
    most=1, base="needed",
)  # fmt: skip
