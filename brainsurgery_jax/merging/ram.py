"""RAM: average task vectors where several models changed an entry, keep whole what one alone changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import (
    by_values,
    constant_of,
    deltas,
    kept_where,
    namespace,
    rounded,
    sums,
    total,
    widened,
)
from brainsurgery_jax.protocol import TensorExpr


def _changed(parts: Sequence[Array], epsilon: float) -> tuple[list[Array], Array]:
    """Where each model changed an entry, and how many did."""
    changed = [~(abs(part) <= constant_of(epsilon, part)) for part in parts]  # as is NaN
    return changed, sum((c.astype(np.float32) for c in changed[1:]), changed[0].astype(np.float32))


def _counts(xs: Sequence[Array], static: Mapping[str, Any]) -> Array:
    changed, number = _changed(deltas(xs, static["exact"]), static["epsilon"])
    shared = [(c & (number > 1)).sum().astype(np.float64) for c in changed]
    return namespace(xs[0]).stack([*shared, *((c & (number == 1)).sum().astype(np.float64) for c in changed)])


def _factors(found: Array, static: Mapping[str, Any]) -> Array:
    xp, n = namespace(found), found.shape[0] // 2
    shared, alone = found[:n], found[n:]
    ratio = xp.where(alone > 0, shared / xp.maximum(alone, np.float64(1)), np.inf)
    return 1 + static["r"] * xp.minimum(ratio, np.float64(static["alpha"]))


unique_factors = sums("ram_factors", _counts, _factors, lambda avals, params: len(avals) - 1)


@by_values("ram")
def average_changes(
    xs: Sequence[Array], values: Sequence[Array], *, epsilon: float, dtype: DType, exact: bool
) -> Array:
    """The base and, of each task vector that changed an entry, its share. There may be factors for what one model alone
    changed."""
    (base,), parts = widened(xs[:1], exact), deltas(xs, exact)
    changed, number = _changed(parts, epsilon)
    if values:
        # mergekit has the factors in float32, and all that it computes with them.
        (base, *parts), alone = widened((base, *parts), exact=True), number == 1
        factors = (values[0] if exact else values[0].astype(np.float32)).astype(base.dtype)
        parts = [namespace(base).where(alone, part * factors[at], part) for at, part in enumerate(parts)]
    kept = total([kept_where(c, part) for c, part in zip(changed, parts, strict=True)])
    return rounded(base + kept / namespace(base).maximum(number, np.float32(1)).astype(base.dtype), dtype)


def ram(merging: Merging) -> TensorExpr:
    """Entries that several models changed are averaged over these; others are kept whole."""
    return merging.with_values(average_changes, [], epsilon=merging.number("epsilon"))


def ramplus_tl(merging: Merging) -> TensorExpr:
    """The same, but what one model alone changed is scaled up by `1 + r * min(rho, alpha)`, `rho` being the number of
    entries that it changed with others for each that it changed alone."""
    epsilon = merging.number("epsilon")
    found = merging.fold(unique_factors, epsilon=epsilon, r=merging.number("r"), alpha=merging.number("alpha"))
    return merging.with_values(average_changes, [found], epsilon=epsilon)


_EPSILON = MergeParameter(1e-5, "differences up to this are no change", low=0)
RAM = MergeMethod(
    "ram", ram, "task vectors averaged over the models that changed an entry", "https://arxiv.org/abs/2601.13572",
    {"epsilon": _EPSILON}, base="needed",
)  # fmt: skip
RAMPLUS_TL = MergeMethod(
    "ramplus_tl", ramplus_tl, "the same, with unshared changes scaled up", "https://arxiv.org/abs/2601.13572",
    {"epsilon": _EPSILON, "r": MergeParameter(0.1, "rate of the scaling", low=0),
     "alpha": MergeParameter(0.2, "ratio from which on it does not grow", low=0)}, base="needed",
)  # fmt: skip
