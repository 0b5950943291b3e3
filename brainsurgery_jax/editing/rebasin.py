"""Git Re-Basin: the order of hidden units in which one model is nearest to another, by their weights. Ainsworth et al.,
Git Re-Basin: Merging models modulo permutation symmetries, 2022, https://arxiv.org/abs/2209.04836, section 3.2."""

from __future__ import annotations

from math import prod
from typing import TypedDict

from brainsurgery_jax._lazy import Array, Flag, jax, np
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.editing.arrays import anywhere, cut_beside, double, like_first, namespace
from brainsurgery_jax.index.parts import Cuts
from brainsurgery_jax.numerics.math import on_host
from brainsurgery_jax.op import Avals, kernel


class UnitParams(TypedDict):
    """Along which axis of each pair of tensors the units lie."""

    axes: tuple[int, ...]


class OrderParams(TypedDict):
    """Along which axis the units of a tensor lie."""

    axis: int


def _order(avals: Avals, params: UnitParams) -> Avals:
    return (Aval((avals[0].shape[params["axes"][0]],), BY_NAME["int32"]),)


def _space(avals: Avals, params: UnitParams) -> int:
    units = avals[0].shape[params["axes"][0]]
    return 8 * (3 * units * units + 2 * 2 * max(a.size for a in avals))


@kernel("rebasin", result=_order, host=anywhere, workspace=_space, guarded=True,
        refusal="a weight holds NaN or infinity")  # fmt: skip
def match_units(*tensors: Array, axes: tuple[int, ...]) -> tuple[Array, Flag]:
    """The order [units] in which the units of the second model are matched to those of the first: the permutation p
    with the largest sum of inner products `<a_i, b_p(i)>` over all tensors, which come in pairs."""
    gains = None
    for a, b, axis in zip(tensors[::2], tensors[1::2], axes, strict=True):
        xp, units = namespace(a), a.shape[axis]
        left, right = (xp.moveaxis(double(x), axis, 0).reshape(units, prod(x.shape) // units) for x in (a, b))
        own = left @ right.T
        gains = own if gains is None else gains + own
    assert gains is not None
    finite = namespace(gains).isfinite(gains).all()
    return _assign(gains), finite


def _assign(gains: Array) -> Array:
    """For each row the column that it is assigned, at the largest sum."""
    if on_host(gains):
        return _assign_rows(gains)
    made = jax.ShapeDtypeStruct(gains.shape[:1], np.int32)
    return jax.pure_callback(_assign_rows, made, jax.lax.stop_gradient(gains), vmap_method="sequential")


def _assign_rows(gains: Array) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    found = np.nan_to_num(np.asarray(gains, np.float64), posinf=0, neginf=0)
    return linear_sum_assignment(found, maximize=True)[1].astype(np.int32)


def _cuts(avals: Avals, params: OrderParams) -> Cuts:
    return cut_beside(avals[0].shape, params["axis"])


def _part_space(avals: Avals, params: OrderParams) -> int:
    return 8 * avals[0].size


@kernel("rebasin", result=like_first, host=anywhere, workspace=_part_space, parts=_cuts)
def reorder(x: Array, order: Array, *, axis: int) -> Array:
    """A tensor with the entries of an axis in another order."""
    return namespace(x).take(x, order, axis=axis, mode="clip")
