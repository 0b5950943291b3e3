"""Spherical interpolation between two models, and its variant on normalized vectors (nuslerp)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import FLOAT32, FLOAT64, DType
from brainsurgery_jax.merging.combine import combined
from brainsurgery_jax.merging.linear import refuse_no_sum
from brainsurgery_jax.merging.method import MergeMethod, Merging
from brainsurgery_jax.merging.rows import by_rows, in_result
from brainsurgery_jax.merging.settings import MergeParameter
from brainsurgery_jax.merging.tensors import double, gram, namespace, rounded, rounding, widened
from brainsurgery_jax.protocol import TensorExpr

PARALLEL = 0.9995
"""Cosines beyond this are of tensors between which slerp goes straight."""

SHORT = 1e-8
"""Norms up to this are not divided by."""

FLOOR = 1e-7
"""The least norm that nuslerp divides by."""

FLAT = 1e-8
"""Sines below this are of vectors between which nuslerp goes straight."""


def _slerp_weights(products: Array, static: Mapping[str, Any]) -> Array:
    """The factors of both tensors, of their inner products."""
    xp, t, step = namespace(products), static["t"], rounding(static["work"])
    norms = step(xp.sqrt(xp.stack([products[0, 0], products[1, 1]])))
    norms = xp.where(norms > SHORT, norms, np.float64(1))
    cosine = xp.clip(step(step(products[0, 1]) / step(norms[0] * norms[1])), -1, 1)
    straight = abs(cosine) > PARALLEL
    angle = step(xp.arccos(xp.where(straight, np.float64(0.5), cosine)))
    sines = step(xp.sin(step(xp.stack([angle * step(np.asarray(1 - t)), angle * step(np.asarray(t))]))))
    return xp.where(straight, np.array([1 - t, t]), step(sines / step(xp.sin(angle))))


slerp_weights = gram("slerp_weights", _slerp_weights, lambda avals, params: 2)


def slerp(merging: Merging) -> TensorExpr:
    """`sin((1-t) a) / sin(a) * x0 + sin(t a) / sin(a) * x1`, `a` being the angle between both tensors."""
    wide = replace(merging, compat=False)  # mergekit computes it in float32, too; float64 stays
    work = FLOAT32 if merging.compat and wide.work != FLOAT64 else None
    return combined(wide, wide.fold(slerp_weights, t=merging.number("t"), base=False, work=work))


# --- nuslerp ----------------------------------------------------------------------------------------------------------


def _nuslerp_sines(cosine: Array, t: float, work: DType | None) -> tuple[Array, Array, Array]:
    """The factors of two vectors (or of many at once), and what their sum is divided by, of the cosine between them."""
    xp, step = namespace(cosine), rounding(work)
    angle = step(xp.arccos(xp.clip(cosine, -1, 1)))
    sine = step(xp.sin(angle))
    straight = abs(sine) < FLAT
    shares = 1 - t, t
    found = [xp.where(straight, np.float64(w), step(xp.sin(step(angle * np.float64(w))))) for w in shares]
    return found[0], found[1], xp.where(straight, np.float64(1), sine)


def _flat_weights(products: Array, static: Mapping[str, Any]) -> Array:
    xp, work = namespace(products), static["work"]
    step = rounding(work)
    first, second = (xp.maximum(step(xp.sqrt(x)), np.float64(FLOOR)) for x in (products[0, 0], products[1, 1]))
    sines = _nuslerp_sines(step(step(products[0, 1]) / step(first * second)), static["t"], work)
    return xp.stack(list(sines))


nuslerp_weights = gram("nuslerp_weights", _flat_weights, lambda avals, params: 3)


@by_rows("nuslerp_rows", in_result)
def nuslerp_rows(*xs: Array, t: float, upright: bool, based: bool, dtype: DType, exact: bool) -> Array:
    """The same for each vector along the last axis, or (`upright`) the first one."""
    wide, axis, work = widened(xs, exact), 0 if upright else -1, None if exact else dtype
    first, second = (x - wide[0] for x in wide[1:]) if based else wide
    xp, step = namespace(first), rounding(work)
    units = []
    for x in map(double, (first, second)):
        norm = step(xp.sqrt(xp.sum(x * x, axis=axis, keepdims=True)))
        units.append(step(x / xp.maximum(norm, np.float64(FLOOR))))
    cosine = step(xp.sum(units[0] * units[1], axis=axis, keepdims=True))
    one, other, divisor = (f.astype(first.dtype) for f in _nuslerp_sines(cosine, t, work))
    merged = (first * one + second * other) / divisor
    return rounded(wide[0] + merged if based else merged, dtype)


def nuslerp(merging: Merging) -> TensorExpr:
    """Slerp whose `t` is the share of the second weight; of differences to the base, if there is one. Raises
    Refusal."""
    one, other = merging.numbers("weight")
    if not merging.compat:
        refuse_no_sum(merging, (one, other))
    small = merging.compat and abs(one + other) < 1e-6  # where mergekit takes equal weights
    t = 0.5 if small else other / (one + other)
    based = merging.base is not None
    if merging.flag("flatten"):
        work = merging.dtype if merging.compat else None
        return combined(merging, merging.fold(nuslerp_weights, t=t, base=based, work=work), divided=True)
    upright = merging.flag("row_wise") and len(merging.aval.shape) > 1
    return merging.by_element(nuslerp_rows, t=t, upright=upright, based=based)


SLERP = MergeMethod(
    "slerp", slerp, "spherical interpolation from the first model to the second",
    "Shoemake, Animating rotation with quaternion curves, 1985",
    {"t": MergeParameter(None, "0 is the first model, 1 the second")}, fewest=2, most=2, base="possible", first=True,
)  # fmt: skip
NUSLERP = MergeMethod(
    "nuslerp", nuslerp, "spherical interpolation by weights, of models or of their differences to a base",
    "Shoemake, Animating rotation with quaternion curves, 1985",
    {"weight": MergeParameter(1.0, "the share of the second weight is `t`", each=True),
     "flatten": MergeParameter(True, "whether a tensor is one vector, or each of its rows is"),
     "row_wise": MergeParameter(False, "not flattened: whether vectors lie along axis 0")},
    fewest=2, most=2, base="possible",
)  # fmt: skip
