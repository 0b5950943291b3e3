"""Reductions over axes: means, sums, extremes and norms of streamed tensors, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal, TypedDict

from pydantic import Field, StrictBool, StrictInt

from brainsurgery_jax._lazy import Array, Flag, Num, jnp, np
from brainsurgery_jax.dtypes import BY_NAME, FLOAT64, INT64, Aval, DType, opaque_hint, opaque_message, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Word
from brainsurgery_jax.numerics.math import keep_subnormal, kind, on_host, quotient, to_float64, wide, widen
from brainsurgery_jax.numerics.rounding import round_to
from brainsurgery_jax.numerics.squares import PASSING, goes_by_pieces, sum_squares
from brainsurgery_jax.numerics.sums import Key, Total, Values, add_up, keep_extreme, reduce_axes
from brainsurgery_jax.op import Avals, Form, Passes, build, kernel
from brainsurgery_jax.ops.shape import axis_of, with_shape
from brainsurgery_jax.protocol import Reduction, TensorExpr, View

Mode = Annotated[Literal["mean", "sum", "min", "max", "norm"], Word]
Dims = Annotated[
    StrictInt | tuple[StrictInt, ...], Field(description="axis, or list of axes, to reduce; without it all of them")
]

LIMIT = 2.0**62
"""Sums of integers of 64 bits are exact where the sum of their magnitudes is below."""

UNFIT = "a sum of integers does not fit their dtype. Cast to a wider one, or to float64, first"


def _sum_dtype(x: DType) -> DType:
    """The dtype in which sums are kept."""
    sums = {"float": FLOAT64, "complex": BY_NAME["complex128"], "uint": BY_NAME["uint64"]}
    return sums.get(x.kind, INT64)


class ReduceParams(TypedDict):
    """The mode of a reduction, and its axes."""

    mode: str
    axes: tuple[int, ...]


def _sum(x: Array, mode: str, axes: tuple[int, ...]) -> tuple[Array, Flag]:
    """The sum of a tensor (of its squared magnitudes for "norm") with reduced axes of size 1, and whether 64 bits hold
    it."""
    xp = np if on_host(x) else jnp
    exact = xp.ones((), dtype=np.bool_)
    if mode == "norm" and on_host(x) and kind(x) == "float":
        return sum_squares(x, axes), exact
    wide = _widen(x)
    if mode == "norm":
        wide = xp.real(wide) ** 2 + xp.imag(wide) ** 2 if kind(wide) == "complex" else wide * wide
    elif kind(x) in ("int", "uint") and x.dtype.itemsize == 8:
        exact = xp.sum(xp.abs(x.astype(np.float64))) < LIMIT
    return xp.sum(wide, axis=axes, keepdims=True), exact


def _widen(x: Array) -> Array:
    if kind(x) == "float" and x.dtype.itemsize < 8 and not on_host(x):
        return to_float64(x)
    return x.astype(to_numpy(_sum_dtype(BY_NAME[x.dtype.name])))


def _extreme(x: Array, mode: str, axes: tuple[int, ...]) -> Array:
    if on_host(x):
        return getattr(np, mode)(widen(x), axis=axes, keepdims=True)
    return keep_subnormal(lambda x: getattr(jnp, mode)(x, axis=axes, keepdims=True), x.dtype, x)


def _finish(x: Array, mode: str, count: int, dtype: DType) -> tuple[Array, Flag]:
    """The result of sums, rounded once to `dtype`; integers must fit."""
    xp = np if on_host(x) else jnp
    if dtype.is_integer:
        low, high = (np.asarray(n, x.dtype) for n in (np.iinfo(to_numpy(dtype)).min, np.iinfo(to_numpy(dtype)).max))
        return x.astype(to_numpy(dtype)), xp.all((x >= low) & (x <= high))
    value = quotient(x, np.asarray(count, x.dtype)) if mode == "mean" else xp.sqrt(x) if mode == "norm" else x
    return round_to(value, to_numpy(dtype)), xp.ones((), dtype=np.bool_)


def _result(avals: Avals, params: ReduceParams) -> tuple[Aval, ...]:
    (x,), mode = avals, params["mode"]
    real = BY_NAME["float32" if x.dtype.bits == 64 else "float64"]
    dtype = real if x.dtype.is_complex and mode == "norm" else x.dtype
    return (Aval(tuple(1 if axis in params["axes"] else n for axis, n in enumerate(x.shape)), dtype),)


def _passes(avals: Avals, params: ReduceParams) -> Passes:
    """One pass over a tensor; overflow of integer sums is detected."""
    (x,), mode, axes = avals, params["mode"], params["axes"]
    (made,) = _result(avals, params)
    count = prod(x.shape[axis] for axis in axes)
    if mode in ("min", "max"):
        return (lambda _: _fold_extreme(x, mode, axes),)
    summed = to_numpy(FLOAT64 if mode == "norm" else _sum_dtype(x.dtype))

    def step(part: np.ndarray, key: Key) -> Values:
        total, exact = _sum(part, mode, axes)
        size = np.abs(total.astype(np.float64)) if np.issubdtype(total.dtype, np.integer) else np.zeros(())
        return np.asarray(total), np.asarray(size), np.asarray(exact)

    def finish(total: np.ndarray, size: np.ndarray, exact: np.ndarray) -> tuple[Array, Flag]:
        value, fits = _finish(total, mode, count, made.dtype)
        return value, np.bool_(fits & exact.all() & (size < LIMIT).all())

    totals = [add_up(summed), add_up(np.dtype(np.float64)), Total(np.dtype(np.bool_), True, np.logical_and)]
    by_pieces = mode == "norm" and x.dtype.is_float and goes_by_pieces(len(x.shape), axes)
    passing = PASSING if by_pieces else None
    return (lambda _: reduce_axes(x.shape, axes, totals, step, finish)._replace(passing=passing),)


def _fold_extreme(x: Aval, mode: str, axes: tuple[int, ...]) -> Reduction:
    dtype = to_numpy(x.dtype)
    total = keep_extreme(mode, to_numpy(wide(x.dtype)))
    return reduce_axes(x.shape, axes, [total], lambda part, key: (np.asarray(_extreme(part, mode, axes)),),
                       lambda found: (found.astype(dtype), np.bool_(True)))  # fmt: skip


@kernel("reduce", result=_result, host=lambda avals, params: True, fold=_passes, guarded=True, refusal=UNFIT)
def reduce_tensor(x: Num[Array, "..."], *, mode: str, axes: tuple[int, ...]) -> tuple[Array, Flag]:
    """The reduction of a tensor, its reduced axes kept with size 1."""
    xp = np if on_host(x) else jnp
    if mode in ("min", "max"):
        return _extreme(x, mode, axes).astype(x.dtype), xp.ones((), dtype=np.bool_)
    total, exact = _sum(x, mode, axes)
    (made,) = _result((Aval(x.shape, BY_NAME[x.dtype.name]),), {"mode": mode, "axes": axes})
    value, fits = _finish(total, mode, prod(x.shape[axis] for axis in axes), made.dtype)
    return value, exact & fits


def _axes(dim: int | Sequence[int] | None, aval: Aval) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(len(aval.shape)))
    axes = tuple(axis_of(d, aval) for d in ((dim,) if isinstance(dim, int) else dim))
    if len(set(axes)) < len(axes):
        raise Refusal("axis-range", f"an axis of {aval} comes twice in {list(axes)}", key="dim", hint="Name each once.")
    return axes


def _refuse(aval: Aval, axes: tuple[int, ...], mode: str) -> None:
    """Refuse tensors without such a reduction, or whose dtype cannot hold it."""
    if aval.dtype.is_opaque:
        raise Refusal("dtype-opaque", opaque_message(aval.dtype), hint=opaque_hint(aval.dtype))
    if 0 in (aval.shape[axis] for axis in axes):
        raise Refusal("no-elements", f"{aval} has no elements to take the {mode} of", hint="Narrow the pattern.")
    whole = aval.dtype.is_integer and mode in ("min", "max", "sum")
    number = aval.dtype.is_float or (aval.dtype.is_complex and mode not in ("min", "max"))
    if not (whole or number):
        hint = "Cast it first: `cast_: {target: ..., to: float64}`."
        fitting = ("float",) if mode in ("min", "max") else ("float", "complex")
        raise Refusal("dtype-unsupported", f"the {mode} of {aval} has no value in its dtype", hint=hint, kinds=fitting)


@build(Form("reduce", ("from",), ("to",), "new", slices=frozenset({"from"})))
def reduce(
    view: View, name: str, x: TensorExpr, *, mode: Mode, dim: Dims | None = None, keepdims: StrictBool = False
) -> TensorExpr:
    """Reduce tensors over axes: `mean`, `sum`, `min`, `max`, or `norm` (the root of the sum of squares).

    Sums are kept in double precision and rounded once to the tensor's dtype; NaN stays. Sums of integers must fit.
    Example: `reduce: {from: '(.*)\\.weight', to: '\\1.norms', mode: norm, dim: 1}`
    """
    axes = _axes(dim, x.aval)
    _refuse(x.aval, axes, mode)
    made = view.apply(reduce_tensor, x, mode=mode, axes=axes)
    kept = tuple(n for axis, n in enumerate(x.aval.shape) if axis not in axes)
    return made if keepdims else view.apply(with_shape, made, shape=kept)
