"""Arithmetic that several families of ops share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, overload

from brainsurgery_jax._lazy import Array, jax, jnp, np
from brainsurgery_jax.dtypes import BY_NAME, FLOAT32, Aval, DType, Kind, float_hint
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.numerics.lookup import look_up, patterns

if TYPE_CHECKING:
    from typing_extensions import TypeIs


def wide(dtype: DType) -> DType:
    """The dtype to compute in: low-precision floats widen to float32, so that a result is rounded once."""
    return FLOAT32 if dtype.is_float and dtype.bits < 32 else dtype


def on_host(x: object) -> TypeIs[np.ndarray]:
    """Whether an array is numpy's: then it is computed on as it stands, else by JAX, perhaps under a trace."""
    return isinstance(x, _of_numpy())


@cache  # kernels ask by the thousand
def _of_numpy() -> tuple[type, ...]:
    return np.ndarray, np.generic


def kind(x: Array) -> Kind:
    """The kind of an array's dtype."""
    return _kind_of(x.dtype)


@cache
def _kind_of(dtype: np.dtype) -> Kind:
    return BY_NAME[dtype.name].kind


@overload
def widen(x: np.ndarray) -> np.ndarray: ...
@overload
def widen(x: jax.Array) -> jax.Array: ...
@overload
def widen(x: Array) -> Array: ...
def widen(x: Array) -> Array:
    """`x` in float32 if it is a float of fewer bits, else `x`."""
    if kind(x) != "float" or x.dtype.itemsize >= 4:
        return x
    if on_host(x) and x.dtype.itemsize == 1:  # six times as fast as `astype`
        return entries(_widen_table(x.dtype), np.asarray(x).view(np.uint8))
    return x.astype(np.float32)


@cache
def _widen_table(dtype: np.dtype) -> np.ndarray:
    return patterns(dtype).astype(np.float32)


def entries(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The entries of a table at the places of a numpy array of whole numbers."""
    at = np.ascontiguousarray(places)
    out = np.empty(places.shape, table.dtype)
    look_up(table, at.reshape(-1), out.reshape(-1))
    return out


def to_float64(x: Array) -> jax.Array:
    """A float of at most 32 bits in float64, subnormal numbers kept."""
    return _like_astype(_to_float64, "float64")(x)


def _to_float64(x: Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    size = (bits & jnp.uint32(0x7FFFFF)).astype(jnp.float64) * jnp.float64(2.0**-149)
    subnormal = (bits & jnp.uint32(0x7F800000)) == 0
    signed = jnp.where(bits >> 31 == 1, -size, size)
    return jnp.where(subnormal, signed, jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.float64))


def keeps_normal(x: Array) -> bool:
    """Whether sums, products and quotients of two values of this float dtype are zero or normal numbers of float32."""
    import ml_dtypes

    return x.dtype.itemsize < 4 and float(ml_dtypes.finfo(x.dtype).smallest_subnormal) >= 2.0**-24


def to_float32(x: Array) -> jax.Array:
    """A float64 rounded to float32 (to nearest, ties to even), subnormal numbers kept."""
    return _like_astype(_to_float32, "float32")(x)


@overload
def narrow_to(x: np.ndarray, dtype: np.dtype) -> np.ndarray: ...
@overload
def narrow_to(x: jax.Array, dtype: np.dtype) -> jax.Array: ...
@overload
def narrow_to(x: Array, dtype: np.dtype) -> Array: ...
def narrow_to(x: Array, dtype: np.dtype) -> Array:
    """`x` in a dtype; where that rounds float64 to float32 in code compiled for the CPU, subnormal numbers are kept."""
    if not on_host(x) and (x.dtype, dtype) == (np.float64, np.float32):
        return jax.lax.platform_dependent(x, cpu=to_float32, default=lambda x: x.astype(dtype))
    return x.astype(dtype, copy=False)


def keep_subnormal(fn: Callable[..., Any], dtype: np.dtype | type[np.generic], *xs: Array) -> jax.Array:
    """`fn(*xs)` of traced arrays, which chooses among elements or compares them, in a dtype. On the CPU, where compiled
    code takes subnormal numbers for zero, floats of at most 32 bits are float64 for it."""

    target = np.dtype(dtype)

    def on_cpu(*ys: Array) -> jax.Array:
        made = fn(*(to_float64(y) if kind(y) == "float" and y.dtype.itemsize < 8 else y for y in ys))
        narrows = made.dtype == np.float64 and _kind_of(target) == "float" and target.itemsize < 8
        return (to_float32(made) if narrows else made).astype(target)

    return jax.lax.platform_dependent(*xs, cpu=on_cpu, default=lambda *ys: fn(*map(widen, ys)).astype(target))


@cache
def _like_astype(fn: Callable[[Array], jax.Array], dtype: str) -> Callable[[Array], jax.Array]:
    """`fn` with the derivative of `astype`: bits have none of their own, so gradients would silently be zero."""
    wrapped = jax.custom_jvp(fn)
    wrapped.defjvps(lambda tangent, result, x: tangent.astype(dtype))
    return jax.jit(wrapped)  # traced once for each shape


def _to_float32(x: Array) -> jax.Array:
    size = jnp.abs(x)
    subnormal = size < 2.0**-126
    count = jnp.round(jnp.where(subnormal, size, jnp.zeros_like(size)) * jnp.float64(2.0**149)).astype(jnp.uint32)
    sign = (jax.lax.bitcast_convert_type(x, jnp.uint64) >> 32).astype(jnp.uint32) & jnp.uint32(0x80000000)
    return jnp.where(subnormal, jax.lax.bitcast_convert_type(count | sign, jnp.float32), x.astype(jnp.float32))


def seal(x: jax.Array) -> jax.Array:
    """A traced array as it is: a value that XLA must round before it computes on with it.

    XLA rewrites floating-point code: `(x + 1) - 1` becomes `x`, `x / 448` becomes `x * (1 / 448)`, `a / b / c` becomes
    `a / (b * c)`, and `a * b + c` is rounded once. Optimization barriers stop nothing of this on the CPU in JAX 0.10,
    but no compiler knows that a square is 0, 1 or 4 modulo 8.
    """
    return _seal_by(x, x)


def quotient(x: Array, y: Array) -> Array:
    """`x / y`, rounded to nearest; `x` and `y` broadcast.

    Of a divisor that many elements share, compiled code multiplies by the reciprocal; this one it must take for another
    number at every element.
    """
    return np.divide(x, y) if on_host(x) and on_host(y) else divide_traced(x, y)


def divide_traced(x: Array, y: Array) -> jax.Array:
    """The same in compiled code."""
    x, y = jnp.broadcast_arrays(x, y)
    return x / _seal_by(y, x)


def _seal_by(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x`, by what no compiler knows to be zero of the bits of `other`, which has its shape and dtype."""
    if kind(x) == "complex":
        return jax.lax.complex(_seal_by(x.real, other.real), _seal_by(x.imag, other.imag))
    if kind(x) != "float":
        return x
    if x.dtype.itemsize < 8:
        return _seal(x, other)
    unsealed = lambda x, other: x  # noqa: E731  (TPUs have no bits of float64 to look at)
    return jax.lax.platform_dependent(x, other, tpu=unsealed, default=_seal)


def _seal(x: jax.Array, other: jax.Array) -> jax.Array:
    return _like_identity()(x, other)


@cache
def _like_identity() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The seal with the derivative of the identity: bits have none of their own."""
    wrapped = jax.custom_jvp(_flip_no_bit)
    wrapped.defjvps(lambda tangent, result, x, other: tangent, None)
    return wrapped


def _flip_no_bit(x: jax.Array, other: jax.Array) -> jax.Array:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(other, unsigned)
    never = ((bits * bits) & np.asarray(5, unsigned)) == np.asarray(5, unsigned)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, unsigned) ^ never.astype(unsigned), x.dtype)


def find_extreme(name: str, x: Array, axis: int | None, *, keepdims: bool) -> Array:
    """Where the first greatest ("argmax") or least ("argmin") element is along an axis, or in row-major order."""
    if on_host(x):
        return np.asarray(getattr(np, name)(x, axis=axis, keepdims=keepdims))
    # JAX's default configuration has no places of 64 bits when it compiles what a plan has traced.
    dtype = np.int32 if x.size < 1 << 31 else np.int64
    flat = jnp.reshape(x, (-1,)) if axis is None else x
    at = 0 if axis is None else axis % x.ndim
    best = getattr(jnp, name.removeprefix("arg"))(flat, axis=at, keepdims=True)
    place = jax.lax.broadcasted_iota(dtype, flat.shape, at)
    here = (flat == best) | (flat != flat)  # where there is NaN, it is the extreme
    found = jnp.min(jnp.where(here, place, np.asarray(flat.shape[at], dtype)), axis=at, keepdims=keepdims)
    return jnp.reshape(found, (1,) * x.ndim) if axis is None and keepdims else found


def largest_entries(x: Array, axis: int) -> Array:
    """The entry of largest magnitude along an axis, which is kept; the first of several."""
    at = find_extreme("argmax", abs(x), axis, keepdims=True)
    if on_host(x) and on_host(at):
        return np.take_along_axis(x, at, axis=axis)
    here = jax.lax.broadcasted_iota(at.dtype, x.shape, axis % x.ndim) == at
    return jnp.where(here, x, jnp.zeros_like(x)).sum(axis=axis, keepdims=True)


def nonzero(x: Array) -> Array:
    """Where `x` is not zero; NaN and subnormal numbers are not."""
    if kind(x) == "complex":
        xp = np if on_host(x) else jnp
        return nonzero(xp.real(x)) | nonzero(xp.imag(x))
    if kind(x) != "float" or on_host(x):
        return x != 0
    if x.dtype.itemsize < 8:
        return to_float64(x) != 0
    return jax.lax.bitcast_convert_type(x, jnp.uint64) << 1 != 0


def matrix(avals: tuple[Aval, ...], what: str) -> None:
    """Refuse anything but a floating or complex matrix with elements."""
    (x,) = avals
    if len(x.shape) != 2 or 0 in x.shape:
        raise Refusal("not-a-matrix", f"{what} needs a matrix with elements, got {x}", hint="Narrow the pattern.")
    if not x.dtype.is_inexact:
        hint = float_hint(x.dtype)
        raise Refusal("dtype-unsupported", f"{what} needs a floating-point matrix, got {x}", hint=hint,
                      kinds=("float", "complex"))  # fmt: skip


def fold_seed(seed: int, name: str) -> int:
    """A 64-bit seed for one tensor of a pattern: equal shapes differ, and the order of tensors never matters."""
    return int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big")


def key_of_block(key_high: Array, key_low: Array, block: Array) -> jax.Array:
    """The random key of block number `block`, folded by JAX's counter-based generator from the two halves of a 64-bit
    seed: blocks may be made in any order."""
    data = jnp.stack([key_high, key_low]).astype(jnp.uint32)
    return jax.random.fold_in(jax.random.wrap_key_data(data), block.astype(jnp.uint32))
