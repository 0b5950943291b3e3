"""EWC consolidation: what two tasks' weights become by the Fisher information of each. Kirkpatrick et al., Overcoming
catastrophic forgetting in neural networks, 2017, https://arxiv.org/abs/1612.00796; its penalty is quadratic, so the
minimum has a closed form (Huszar, Note on the quadratic penalties in EWC, 2018, https://arxiv.org/abs/1712.03847)."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, Flag
from brainsurgery_jax.editing.arrays import anywhere, check_floats, check_shape, double, like_first, namespace, rounded
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.parts import AxisCut, Cuts
from brainsurgery_jax.op import Avals, Number, Params, kernel


def _check(avals: Avals, params: Params) -> None:
    check_floats(avals)
    strength = params["strength"]
    if not (isinstance(strength, int | float) and strength >= 0):
        raise Refusal("value-type", f"expected a number from 0 on, got {strength}", key="strength",
                      hint="With 0 the weights stay; the larger, the nearer they come to the old ones.")  # fmt: skip
    hint = "Old weights and Fisher information have a value for each entry."
    for what, aval in zip(("old weights", "Fisher values", "Fisher values"), avals[1:], strict=False):
        check_shape(what, aval, avals[0].shape, hint)


def _cuts(avals: Avals, params: Params) -> Cuts:
    """Runs of at most so many elements, along the leading axes."""
    cuts, rest = list[AxisCut](), avals[0].size
    for axis, size in enumerate(avals[0].shape):
        rest //= max(1, size)
        step = max(1, min(size, (1 << 18) // max(1, rest)))
        if step < size:
            cuts.append(AxisCut(axis, size, step, (axis,) * len(avals)))
        if rest <= 1 << 18:
            break
    return tuple(cuts)


def _space(avals: Avals, params: Params) -> int:
    return 8 * 9 * avals[0].size


@kernel(
    "consolidate",
    check=_check,
    result=like_first,
    host=anywhere,
    workspace=_space,
    parts=_cuts,
    guarded=True,
    refusal="a tensor holds NaN or infinity, or Fisher information is negative. It is the mean of squared "
    "gradients: square them before, and set to 0 what rounding has made negative, by `clamp_: {target: ..., min: 0}`",
)
def consolidate(new: Array, old: Array, fisher: Array, *own: Array, strength: Number) -> tuple[Array, Flag]:
    """`(G new + strength F old) / (G + strength F)`, the minimum of `G (x - new)^2 + strength F (x - old)^2`; G is 1
    where no Fisher information of the new task is given. Where both are 0, the new weight stays."""
    xp = namespace(new)
    x, y, information = double(new), double(old), double(fisher)
    f = information * strength
    g = double(own[0]) if own else xp.ones_like(f)
    total = f + g
    none = total == 0
    share = xp.where(none, xp.zeros_like(f), f) / xp.where(none, xp.ones_like(total), total)
    value, finite = rounded(x + share * (y - x), new)
    return value, finite & (information >= 0).all() & (g >= 0).all()
