"""Arithmetic on equal shapes: results are computed in at least float32 and rounded once to the tensor's own dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainsurgery_jax._lazy import Array, Num, Shaped, jax, jnp
from brainsurgery_jax.dtypes import FLOAT32, FLOAT64, Aval, DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import DTypeName, Form, Number, op
from brainsurgery_jax.ops._math import nonzero, rounded, to_float32, to_float64

_BINARY = frozenset({"from_a", "from_b", "to"})
_BOTH = frozenset({"from", "to"})


def _into(name: str) -> Form:
    return Form(name, ("from_a", "from_b"), ("to",), "existing", slices=_BINARY)


def _onto(name: str) -> Form:
    return Form(name, ("to", "from"), ("to",), "existing", pattern="from", slices=_BOTH)


def _new(name: str, **keys: str) -> Form:
    return Form(name, ("from",), ("to",), "new", slices=frozenset({"from"}), keys=tuple(keys.items()))


def _in_place(name: str) -> Form:
    return Form(name, ("target",), ("target",), "existing", slices=frozenset({"target"}))


@op(Form("assign", ("from",), ("to",), "existing", slices=_BOTH), elementwise=True, noop=lambda avals, params: True)
def assign(x: Shaped[Array, "..."]) -> Array:
    """Copy values into a tensor (or part of one) that exists, with the same shape and dtype.

    Example: `assign: {from: 'a::w::[:, :4]', to: 'a::v::[:, 4:8]'}`
    """
    return x


@op(_into("add"), _onto("add_"), elementwise=True)
def add(x: Num[Array, "..."], y: Num[Array, "..."]) -> Array:
    """Add two tensors of equal shape and dtype. Integers wrap, booleans are or-ed.

    `add` writes into `to`, which must exist; `add_` adds `from` to `to`.
    Example: `add: {from_a: '(.*)\\.w', from_b: '\\1.delta', to: '\\1.w'}`
    Example: `add_: {from: 'delta::(.*)', to: 'base::\\1'}`
    """
    return rounded(jnp.add, x, y)


def _no_bool(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> None:
    if avals[0].dtype.kind == "bool":
        hint = "Cast first: `cast_: {target: ..., to: int8}`."
        raise Refusal("dtype-unsupported", f"this step cannot compute on booleans, got {avals[0]}", hint=hint)


@op(_into("subtract"), _onto("subtract_"), elementwise=True, check=_no_bool)
def subtract(x: Num[Array, "..."], y: Num[Array, "..."]) -> Array:
    """Subtract the second tensor from the first (`subtract_`: `from` from `to`). Integers wrap.

    `subtract` writes into `to`, which must exist.
    Example: `subtract: {from_a: '(.*)\\.w', from_b: '\\1.base', to: '\\1.w'}`
    Example: `subtract_: {from: 'base::(.*)', to: 'tuned::\\1'}`
    """
    return rounded(jnp.subtract, x, y)


@op(_into("multiply"), elementwise=True)
def multiply(x: Num[Array, "..."], y: Num[Array, "..."]) -> Array:
    """Multiply two tensors of equal shape and dtype. Integers wrap, booleans are and-ed.

    `to` must exist, and is overwritten.
    Example: `multiply: {from_a: '(.*)\\.w', from_b: '\\1.mask', to: '\\1.w'}`
    """
    return rounded(jnp.multiply, x, y)


@op(
    _new("scale"),
    _in_place("scale_"),
    elementwise=True,
    check=_no_bool,
    guarded=True,
    refusal="scaling this integer tensor is not exact. Cast it to a floating dtype first",
)
def scale(x: Num[Array, "..."], *, by: Number) -> tuple[Array, Array]:
    """Multiply by a number. Integer tensors are scaled where every result is an exact integer of their dtype.

    Example: `scale: {from: delta, to: half_delta, by: 0.5}`
    Example: `scale_: {target: '.*bias', by: 0.5}`
    """
    if jnp.issubdtype(x.dtype, jnp.integer):
        y = x.astype(jnp.float64) * by
        info = jnp.iinfo(x.dtype)
        # Beyond 2**53 a float64 no longer tells neighbouring integers apart.
        low, high = max(float(info.min), -(2.0**53)), min(float(info.max), 2.0**53)
        exact = jnp.all((y == jnp.round(y)) & (y >= low) & (y <= high) & (jnp.abs(x.astype(jnp.float64)) <= 2.0**53))
        return y.astype(x.dtype), exact
    real = jnp.float64 if x.dtype in (jnp.float64, jnp.complex128) else jnp.float32
    factor = jnp.asarray(by).astype(real)
    return rounded(lambda w: w * factor.astype(w.dtype), x), jnp.ones((), jnp.bool_)


def _bounds(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> None:
    _no_bool(avals, params)
    low, high = params.get("min_"), params.get("max_")
    if low is None and high is None:
        raise Refusal("clamp-bounds", "give at least one of min and max", key="min",
                      hint="Add `min: NUMBER`, `max: NUMBER`, or both.")  # fmt: skip
    if low is not None and high is not None and low > high:
        raise Refusal("clamp-bounds", f"min {low:g} is greater than max {high:g}", key="min", hint="Swap them.")
    if avals[0].dtype.kind == "complex":
        raise Refusal("dtype-unsupported", f"complex numbers have no order, got {avals[0]}")
    if avals[0].dtype.kind in ("int", "uint"):
        for key, bound in (("min", low), ("max", high)):
            if bound is not None and bound != round(bound):
                hint = "Use a whole number, or cast to a floating dtype first."
                raise Refusal(
                    "inexact",
                    f"the bound {bound:g} is not an integer, but the tensor is {avals[0]}",
                    key=key,
                    hint=hint,
                )


@op(_new("clamp"), _in_place("clamp_"), elementwise=True, check=_bounds)
def clamp(x: Num[Array, "..."], *, min_: Number | None = None, max_: Number | None = None) -> Array:
    """Limit values to `min` and `max`, either of which may be left out. NaN stays NaN.

    Bounds are rounded to the tensor's dtype; an integer tensor takes whole bounds and stays integer.
    Example: `clamp: {from: w, to: w_clipped, min: -1, max: 1}`
    Example: `clamp_: {target: '.*bias', max: 1}`
    """
    low, high = (None if b is None else _bound(b, x.dtype) for b in (min_, max_))
    y = x if low is None else rounded(jnp.maximum, x, low)
    return y if high is None else rounded(jnp.minimum, y, high)


def _bound(value: Any, dtype: Any) -> Any:
    """A bound rounded to a dtype. What lies outside of it bounds nothing, also where the dtype has no infinity."""
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return jnp.clip(value, float(info.min), float(info.max)).astype(dtype)
    if dtype.itemsize > 1:
        return value.astype(dtype)
    own = value.astype(dtype).astype(jnp.float32)
    return jnp.where(jnp.isnan(own), value.astype(jnp.float32) * jnp.float32(jnp.inf), own)


def _to_dtype(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> tuple[Aval, ...]:
    return (Aval(avals[0].shape, params["dtype"]),)


def _computable(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> None:
    if params["dtype"].kind == "opaque":
        raise Refusal(
            "dtype-unsupported", f"cannot cast to {params['dtype']}: there is no arithmetic for it", key="dtype"
        )


@op(
    _new("cast"),
    Form("cast_", ("target",), ("target",), "rebind", keys=(("dtype", "to"),)),
    elementwise=True,
    result=_to_dtype,
    check=_computable,
    noop=lambda avals, params: avals[0].dtype == params["dtype"],
)
def cast(x: Num[Array, "..."], *, dtype: DTypeName) -> Array:
    """Convert to another dtype: to floats by rounding to nearest even, to integers towards zero, to bool by `!= 0`.

    What an integer dtype cannot hold becomes its nearest value, and NaN becomes 0. Of complex numbers the real part is
    taken.
    Example: `cast: {from: w, to: w_half, dtype: float16}`
    Example: `cast_: {target: '.*', to: bfloat16}`
    """
    if dtype.kind == "bool":
        return nonzero(x)
    if not jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _converted(x, dtype)
    if dtype.kind != "complex":
        return _converted(x.real, dtype)
    part = FLOAT64 if dtype.bits == 128 else FLOAT32
    return jax.lax.complex(_converted(x.real, part), _converted(x.imag, part))


def _converted(x: Array, dtype: DType) -> Array:
    """A real array in another dtype. Between float64 and smaller floats always by way of float32, as elsewhere."""
    if jnp.issubdtype(x.dtype, jnp.floating) and dtype.kind in ("float", "complex"):
        wide = dtype.name in ("float64", "complex128")
        if x.dtype == jnp.float64 and not wide:
            x = to_float32(x)
        elif x.dtype != jnp.float64 and wide:
            x = to_float64(x)
    assert dtype.numpy is not None
    return x.astype(dtype.numpy)
