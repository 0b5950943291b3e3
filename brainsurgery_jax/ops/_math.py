"""Arithmetic that several families of ops share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Any

from brainsurgery_jax._lazy import jax, jnp, np
from brainsurgery_jax.dtypes import BY_NAME, FLOAT32, Aval, DType, Kind, float_hint
from brainsurgery_jax.errors import Refusal


def wide(dtype: DType) -> DType:
    """The dtype to compute in: low-precision floats widen to float32, so that a result is rounded once."""
    return FLOAT32 if dtype.kind == "float" and dtype.bits < 32 else dtype


def on_host(x: Any) -> bool:
    """Whether an array is numpy's: then it is computed on as it stands, else by JAX, perhaps under a trace."""
    return isinstance(x, np.ndarray)


def kind(x: Any) -> Kind:
    """The kind of an array's dtype."""
    return BY_NAME[x.dtype.name].kind


def widen(x: Any) -> Any:
    """`x` in float32 if it is a float of fewer bits, else `x`."""
    return x.astype(np.float32) if kind(x) == "float" and x.dtype.itemsize < 4 else x


def rounded(name: str, x: Any, *others: Any) -> Any:
    """`xp.name(x, *others)`, computed in at least float32 and rounded once to the dtype of `x`.

    XLA's CPU code takes subnormal numbers for zero. There, what other tools compute in float32 is computed in float64,
    in which no float32 is subnormal, then rounded to float32: sums, differences, products and quotients have the same
    bits. numpy keeps subnormal numbers by itself.
    """
    if on_host(x):
        wide = widen(x)
        own = {} if wide is x else {"out": wide}  # made here, and small enough to be still in the cache
        return getattr(np, name)(wide, *map(widen, others), **own).astype(x.dtype, copy=False)
    fn = getattr(jnp, name)
    if kind(x) != "float" or x.dtype.itemsize > 4:
        return fn(x, *others).astype(x.dtype)
    return jax.lax.platform_dependent(
        x, *others,
        cpu=lambda *xs: to_float32(fn(*map(to_float64, xs))).astype(x.dtype),
        default=lambda *xs: fn(*(y.astype(jnp.float32) for y in xs)).astype(x.dtype),
    )  # fmt: skip


def to_float64(x: Any) -> Any:
    """A float of at most 32 bits in float64, subnormal numbers kept."""
    return _like_astype(_to_float64, "float64")(x)


def _to_float64(x: Any) -> Any:
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    size = (bits & jnp.uint32(0x7FFFFF)).astype(jnp.float64) * jnp.float64(2.0**-149)
    subnormal = (bits & jnp.uint32(0x7F800000)) == 0
    signed = jnp.where(bits >> 31 == 1, -size, size)
    return jnp.where(subnormal, signed, jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.float64))


def to_float32(x: Any) -> Any:
    """A float64 rounded to float32 (to nearest, ties to even), subnormal numbers kept."""
    return _like_astype(_to_float32, "float32")(x)


@cache
def _like_astype(fn: Callable[[Any], Any], dtype: str) -> Callable[[Any], Any]:
    """`fn` with the derivative of `astype`: bits have none of their own, so gradients would silently be zero."""
    wrapped = jax.custom_jvp(fn)
    wrapped.defjvps(lambda tangent, result, x: tangent.astype(dtype))
    return wrapped


def _to_float32(x: Any) -> Any:
    size = jnp.abs(x)
    subnormal = size < 2.0**-126
    count = jnp.round(jnp.where(subnormal, size, jnp.zeros_like(size)) * jnp.float64(2.0**149)).astype(jnp.uint32)
    sign = (jax.lax.bitcast_convert_type(x, jnp.uint64) >> 32).astype(jnp.uint32) & jnp.uint32(0x80000000)
    return jnp.where(subnormal, jax.lax.bitcast_convert_type(count | sign, jnp.float32), x.astype(jnp.float32))


def nonzero(x: Any) -> Any:
    """Where `x` is not zero; NaN and subnormal numbers are not."""
    if kind(x) == "complex":
        return nonzero(x.real) | nonzero(x.imag)
    if kind(x) != "float":
        return x != 0
    if x.dtype.itemsize < 8:
        return to_float64(x) != 0
    return jax.lax.bitcast_convert_type(x, jnp.uint64) << 1 != 0


def matrix(avals: tuple[Aval, ...], what: str) -> None:
    """Refuse anything but a floating or complex matrix with elements."""
    (x,) = avals
    if len(x.shape) != 2 or 0 in x.shape:
        raise Refusal("not-a-matrix", f"{what} needs a matrix with elements, got {x}", hint="Narrow the pattern.")
    if x.dtype.kind not in ("float", "complex"):
        hint = float_hint(x.dtype)
        raise Refusal("dtype-unsupported", f"{what} needs a floating-point matrix, got {x}", hint=hint,
                      kinds=("float", "complex"))  # fmt: skip


def fold_seed(seed: int, name: str) -> int:
    """A 64-bit seed for one tensor of a pattern: equal shapes differ, and the order of tensors never matters."""
    return int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big")
