"""Directional ablation: a matrix loses what it writes along some directions, or what it reads along them.

Arditi et al., Refusal in language models is mediated by a single direction, 2024, https://arxiv.org/abs/2406.11717.
"""

from __future__ import annotations

from typing import TypedDict

from brainsurgery_jax._lazy import Array, Flag
from brainsurgery_jax.dtypes import FLOAT64, Aval
from brainsurgery_jax.editing.arrays import (
    anywhere,
    check_floats,
    cut_beside,
    double,
    like_first,
    namespace,
    orthonormal_rows,
    rounded,
)
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.parts import Cuts
from brainsurgery_jax.numerics.symmetry import precision
from brainsurgery_jax.op import Avals, Number, Params, kernel


class AblationParams(TypedDict):
    """The axis along which directions lie."""

    axis: int


def _basis_aval(avals: Avals, params: Params) -> Avals:
    shape = avals[0].shape if len(avals[0].shape) == 2 else (1, *avals[0].shape)
    return (Aval(shape, FLOAT64),)


def _check_directions(avals: Avals, params: Params) -> None:
    check_floats(avals)
    shape = avals[0].shape
    if len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[0] > shape[1]):
        hint = "Give one direction [width], or fewer than the width as rows [n, width]."
        raise Refusal("not-a-matrix", f"directions are vectors, got {avals[0]}", key="direction", hint=hint)


@kernel("ablate", check=_check_directions, result=_basis_aval, host=anywhere, guarded=True,
        refusal="directions are zero, or depend on each other, or hold NaN or infinity")  # fmt: skip
def basis(directions: Array) -> tuple[Array, Flag]:
    """Orthonormal rows [n, width] that span some directions, in float64."""
    xp = namespace(directions)
    return orthonormal_rows(xp.atleast_2d(double(directions)), precision(directions.dtype))


def _cuts(avals: Avals, params: AblationParams) -> Cuts:
    return cut_beside(avals[0].shape, params["axis"])


def _space(avals: Avals, params: Params) -> int:
    return 8 * 5 * avals[0].size


@kernel("ablate", result=like_first, host=anywhere, workspace=_space, parts=_cuts, guarded=True,
        refusal="a tensor holds NaN or infinity")  # fmt: skip
def project_out(w: Array, rows: Array, *, axis: int, strength: Number) -> tuple[Array, Flag]:
    """`W - strength * Q Q^T W`, the vectors along an axis without their part in the span of orthonormal rows."""
    xp = namespace(w)
    last = xp.moveaxis(double(w), axis, -1)
    made = last - strength * ((last @ rows.T) @ rows)
    return rounded(xp.moveaxis(made, -1, axis), w)
