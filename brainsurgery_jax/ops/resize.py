"""Resampling along axes, as for images: it adapts tables of positions to a finer or coarser grid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from math import prod
from typing import Annotated, Literal, TypedDict

from pydantic import Field, StrictBool, StrictInt

from brainsurgery_jax._lazy import Array, Float, jax, np
from brainsurgery_jax.dtypes import Aval, float_hint, opaque_hint, opaque_message
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Word
from brainsurgery_jax.numerics.math import widen
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.op import Avals, Form, build, kernel
from brainsurgery_jax.ops.shape import take
from brainsurgery_jax.protocol import TensorExpr, View

NEAREST = "nearest"
"""The method that copies elements, of any dtype."""

Method = Annotated[
    Literal["nearest", "bilinear", "bicubic", "bicubic-pytorch", "lanczos3", "lanczos5"],
    Word,
    Field(description="how to interpolate, as `jax.image.resize` names it"),
]
Sizes = Annotated[
    tuple[Annotated[StrictInt, Field(ge=-1)], ...], Field(min_length=1, description="new sizes; -1 keeps one")
]


class SizeParams(TypedDict):
    """The keys that the workspace depends on."""

    shape: tuple[int, ...]


def _workspace(avals: Avals, params: SizeParams) -> int:
    """Bytes besides operand and result: the operand widened, what stands between axes, and a matrix of weights for
    each axis, with as much again while they are made."""
    (x,), shape = avals, params["shape"]
    wide = max(4, x.dtype.bits // 8)
    weights = sum(n * m for n, m in zip(x.shape, shape, strict=True) if n != m)
    between = prod(map(max, x.shape, shape))
    return wide * (x.size + 2 * between + 4 * weights)


@kernel(
    result=lambda avals, params: (Aval(params["shape"], avals[0].dtype),),
    workspace=_workspace,
)
def resample(x: Float[Array, "..."], *, shape: tuple[int, ...], method: str, antialias: bool) -> Array:
    """`jax.image.resize` in at least float32, rounded once.

    Weights of 32-bit values are computed in 32 bits even where JAX has 64-bit types enabled, as plans run: so the
    result has the bits that the function has in a program that leaves JAX's default.
    """
    narrow = x.dtype != np.float64
    with jax.enable_x64(False) if narrow else nullcontext():
        made = jax.image.resize(widen(x), shape, method, antialias=antialias)
    return round_to(made, x.dtype)


def _nearest(size: int, wanted: int) -> tuple[int, ...]:
    """For each new entry of an axis, the number of the one whose centre is nearest, as compiled JAX rounds it.

    XLA folds the two factors into one, in float32: where a centre falls on the edge between two entries, the product
    decides which of them is taken, and exact arithmetic would at times take the other.
    """
    scale = np.float32(size) * (np.float32(1) / np.float32(wanted))
    return tuple(int(n) for n in np.floor((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale))


def _resolve(shape: Sequence[int], aval: Aval) -> tuple[int, ...]:
    """The new shape, with the sizes that stay. Raises Refusal."""
    if len(shape) != len(aval.shape):
        found = f"`shape` is for {len(shape)} axes, but {aval} has {len(aval.shape)}"
        raise Refusal("resize-shape", found, key="shape", hint="Give one size for each axis; -1 keeps it.")
    made = tuple(n if m == -1 else m for n, m in zip(aval.shape, shape, strict=True))
    if 0 in made or 0 in aval.shape:
        found = f"{aval} cannot be resized to {list(made)}: there is nothing between no elements"
        raise Refusal("resize-shape", found, key="shape", hint="Give sizes of at least 1.")
    return made


def _check_floats(aval: Aval) -> None:
    if aval.dtype.is_opaque:
        raise Refusal("dtype-opaque", opaque_message(aval.dtype), hint=opaque_hint(aval.dtype))
    if not aval.dtype.is_float:
        hint = f"{float_hint(aval.dtype)} `method: nearest` copies elements of any dtype."
        raise Refusal("dtype-unsupported", f"{aval} has no values between its own", hint=hint, kinds=("float",))


@build(
    Form("resize", ("from",), ("to",), "new", slices=frozenset({"from"})),
    Form("resize_", ("target",), ("target",), "rebind"),
)
def resize(
    view: View, name: str, x: TensorExpr, *, shape: Sizes, method: Method, antialias: StrictBool = True
) -> TensorExpr:
    """Interpolate along axes to a new shape, as `jax.image.resize` does: for tables of positions on another grid.

    With `antialias`, axes that become shorter are smoothed; it does nothing for longer ones. Computed in at least
    float32 and rounded once; `nearest` copies elements of any dtype. `bicubic` is Keys' kernel (a = -0.5);
    `bicubic-pytorch` without `antialias` is that of `torch.nn.functional.interpolate` (a = -0.75).
    Example: `resize: {from: grid, to: finer, shape: [24, 24, -1], method: bilinear}`
    Example: `resize_: {target: '.*\\.position_grid', shape: [1, 16, 16, -1], method: bicubic, antialias: false}`
    Reference: R. G. Keys, Cubic convolution interpolation for digital image processing, 1981.
    """
    made = _resolve(shape, x.aval)
    if method == NEAREST:
        for axis, (size, wanted) in enumerate(zip(x.aval.shape, made, strict=True)):
            if size != wanted:
                x = view.apply(take, x, indices=_nearest(size, wanted), dim=axis)
        return x
    _check_floats(x.aval)
    return x if made == x.aval.shape else view.apply(resample, x, shape=made, method=method, antialias=antialias)
