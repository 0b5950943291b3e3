"""Reductions over axes: means, sums, extremes and norms, in double precision over parts of fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt

from brainsurgery_jax._lazy import Array, Num, jnp, np
from brainsurgery_jax.dtypes import BY_NAME, FLOAT64, INT64, Aval, DType, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import Form, build, kernel
from brainsurgery_jax.ops._fields import Word
from brainsurgery_jax.ops._math import kind, on_host, quotient, to_float64, widen
from brainsurgery_jax.ops._rounding import round_to
from brainsurgery_jax.ops.shape import axis_of, concatenate, section, with_shape
from brainsurgery_jax.protocol import Expr, View

Mode = Annotated[Literal["mean", "sum", "min", "max", "norm"], Word]
Dims = Annotated[
    StrictInt | tuple[StrictInt, ...], Field(description="axis, or list of axes, to reduce; without it all of them")
]

PART = 1 << 22
"""Elements that are reduced at a time: the tree of partial results follows from the shape alone."""


UNFIT = "a sum of integers does not fit their dtype. Cast to a wider one, or to float64, first"


def _summed_dtype(x: DType) -> DType:
    """The dtype in which sums are kept."""
    integer = BY_NAME["uint64"] if x.kind == "uint" else INT64
    return {"float": FLOAT64, "complex": BY_NAME["complex128"]}.get(x.kind, integer)


def _partial_aval(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> tuple[Aval, ...]:
    (x,), mode = avals, params["mode"]
    dtype = x.dtype if mode in ("min", "max") else FLOAT64 if mode == "squares" else _summed_dtype(x.dtype)
    return (Aval(tuple(1 if axis in params["axes"] else n for axis, n in enumerate(x.shape)), dtype),)


def _working(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> int:
    """Bytes of a part in the dtype that is computed in, and of its magnitudes."""
    (x,) = avals
    if params["mode"] in ("min", "max"):
        return 4 * x.size
    return x.size * {"complex": 40, "float": 8}.get(x.dtype.kind, 16)


@kernel(
    result=_partial_aval,
    host=lambda avals, params: True,
    workspace=_working,
    guarded=True,
    refusal=UNFIT,
)
def partial(x: Num[Array, "..."], *, mode: str, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The reduction of a part, its axes kept with size 1. `squares`: the sum of squared magnitudes."""
    xp: Any = np if on_host(x) else jnp
    exact = xp.ones((), dtype=np.bool_)
    if mode in ("min", "max"):
        return getattr(xp, mode)(widen(x), axis=axes, keepdims=True).astype(x.dtype), exact
    wide = _widened(x)
    if mode == "squares" and kind(wide) == "complex":
        wide = wide.real**2 + wide.imag**2
    elif mode == "squares":
        wide *= wide
    elif kind(x) in ("int", "uint") and x.dtype.itemsize == 8:
        exact = xp.sum(xp.abs(x.astype(np.float64))) < 2.0**62
    return xp.sum(wide, axis=axes, keepdims=True), exact


def _widened(x: Array) -> Array:
    if kind(x) == "float" and x.dtype.itemsize < 8 and not on_host(x):
        return to_float64(x)
    return x.astype(to_numpy(_summed_dtype(BY_NAME[x.dtype.name])))


def _exact(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> tuple[Aval, ...]:
    return (Aval(avals[0].shape, params["dtype"]),)


@kernel(
    elementwise=True,
    result=_exact,
    guarded=True,
    refusal=UNFIT,
    host=lambda avals, params: True,
)
def finished(x: Num[Array, "..."], *, mode: str, count: int, dtype: DType) -> tuple[Array, Array]:
    """What is made of sums, rounded once to `dtype`; integers where they fit."""
    xp: Any = np if on_host(x) else jnp
    if dtype.kind in ("int", "uint"):
        low, high = (np.asarray(n, x.dtype) for n in (np.iinfo(to_numpy(dtype)).min, np.iinfo(to_numpy(dtype)).max))
        return x.astype(to_numpy(dtype)), xp.all((x >= low) & (x <= high))
    value: Any = quotient(x, np.asarray(count, x.dtype)) if mode == "mean" else xp.sqrt(x) if mode == "norm" else x
    return round_to(value, to_numpy(dtype)), xp.ones((), dtype=np.bool_)


def _reduced(view: View, x: Expr, mode: str, axes: tuple[int, ...]) -> Expr:
    """A tensor reduced part by part, cut along its first axes; where the result is large, along one that it has."""
    shape = x.aval.shape
    if x.aval.size <= PART:
        return view.apply(partial, x, mode=mode, axes=axes)
    left = [axis for axis, n in enumerate(shape) if n > 1]
    kept = [axis for axis in left if axis not in axes]
    cut = kept[0] if 4 * prod(shape[axis] for axis in kept) > PART else left[0]
    rows = max(1, PART * shape[cut] // x.aval.size)
    cuts = [(start, min(start + rows, shape[cut])) for start in range(0, shape[cut], rows)]
    parts = [view.apply(section, x, axis=cut, start=start, stop=stop) for start, stop in cuts]
    made = view.apply(concatenate, *(_reduced(view, part, mode, axes) for part in parts), axis=cut)
    if cut not in axes:
        return made
    return _reduced(view, made, "sum" if mode == "squares" else mode, (cut,))


def _axes(dim: int | Sequence[int] | None, aval: Aval) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(len(aval.shape)))
    axes = tuple(axis_of(d, aval) for d in ((dim,) if isinstance(dim, int) else dim))
    if len(set(axes)) < len(axes):
        raise Refusal("axis-range", f"an axis of {aval} comes twice in {list(axes)}", key="dim", hint="Name each once.")
    return axes


def _refuse(aval: Aval, axes: tuple[int, ...], mode: str) -> None:
    """Refuse what has no such reduction, or none that its dtype can hold."""
    if aval.dtype.kind == "opaque":
        raise Refusal("dtype-opaque", f"{aval.dtype} tensors can be named, copied and moved, but not computed on")
    if 0 in (aval.shape[axis] for axis in axes):
        raise Refusal("no-elements", f"{aval} has no elements to take the {mode} of", hint="Narrow the pattern.")
    whole = aval.dtype.kind in ("int", "uint") and mode in ("min", "max", "sum")
    number = aval.dtype.kind == "float" or (aval.dtype.kind == "complex" and mode not in ("min", "max"))
    if not (whole or number):
        hint = "Cast it first: `cast_: {target: ..., to: float64}`."
        fitting = ("float",) if mode in ("min", "max") else ("float", "complex")
        raise Refusal("dtype-unsupported", f"the {mode} of {aval} has no value in its dtype", hint=hint, kinds=fitting)


def _result_dtype(x: DType, mode: str) -> DType:
    real = BY_NAME["float32" if x.bits == 64 else "float64"]
    return real if x.kind == "complex" and mode == "norm" else x


@build(Form("reduce", ("from",), ("to",), "new", slices=frozenset({"from"})))
def reduce(
    view: View, name: str, x: Expr, *, mode: Mode, dim: Dims | None = None, keepdims: StrictBool = False
) -> Expr:
    """Reduce tensors over axes: `mean`, `sum`, `min`, `max`, or `norm` (the root of the sum of squares).

    Sums are kept in double precision and rounded once to the tensor's dtype; NaN stays. Sums of integers must fit.
    Example: `reduce: {from: '(.*)\\.weight', to: '\\1.norms', mode: norm, dim: 1}`
    """
    axes = _axes(dim, x.aval)
    _refuse(x.aval, axes, mode)
    made = _reduced(view, x, {"mean": "sum", "norm": "squares"}.get(mode, mode), axes)
    if mode not in ("min", "max"):
        count = prod(x.aval.shape[axis] for axis in axes)
        made = view.apply(finished, made, mode=mode, count=count, dtype=_result_dtype(x.aval.dtype, mode))
    kept = tuple(n for axis, n in enumerate(x.aval.shape) if axis not in axes)
    return made if keepdims else view.apply(with_shape, made, shape=kept)
