"""How values become what a dtype can hold: rounded to nearest even, once, and what is done with those that do not fit.

On numpy arrays as in compiled code, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Literal, overload

from pydantic import Field

from brainsurgery_jax._lazy import Array, Flag, jax, jnp, np
from brainsurgery_jax.dtypes import BY_NAME, FLOAT32, FLOAT64, DType, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Word
from brainsurgery_jax.numerics.math import (
    divide_traced,
    entries,
    keeps_normal,
    kind,
    nonzero,
    on_host,
    seal,
    to_float32,
    to_float64,
    widen,
)

Overflow = Annotated[
    Literal["saturate", "nan", "wrap"],
    Word,
    Field(description="what to do with values that the dtype cannot hold; see 'Rounding and dtypes'"),
]

SATURATING = "float8_e4m3fn"
"""The one float dtype that by default takes its largest value for every larger one and for infinity, as torch does.
The others take infinity if they have it, else NaN."""

BARE_EXPONENT = "float8_e8m0fnu"
"""Has neither zero nor sign: zero becomes its least value as in torch, negative numbers become NaN (torch drops the
sign)."""


def round_once(name: str, x: Array, *others: Array) -> Array:
    """`xp.name(x, *others)`, computed in at least float32 and rounded once to the dtype of `x`.

    XLA's CPU code takes subnormal numbers for zero. There, what other tools compute in float32 is computed in float64,
    in which no float32 is subnormal, then rounded to float32: sums, differences, products and quotients have the same
    bits. Dtypes whose results in float32 are never subnormal are spared this. numpy keeps subnormal numbers by itself.
    """
    if on_host(x):
        wide = widen(x)
        own = {} if wide is x else {"out": wide}  # made here, and small enough to be still in the cache
        return round_to(getattr(np, name)(wide, *map(widen, others), **own), x.dtype)
    fn: Callable[..., jax.Array] = divide_traced if name == "divide" else getattr(jnp, name)
    if kind(x) != "float" or x.dtype.itemsize > 4:
        return seal(fn(x, *others).astype(x.dtype))
    if all(map(keeps_normal, (x, *others))):
        return round_to(seal(fn(*(y.astype(jnp.float32) for y in (x, *others)))), x.dtype)
    return jax.lax.platform_dependent(
        x, *others,
        cpu=lambda *xs: round_to(to_float32(fn(*map(to_float64, xs))), x.dtype),
        default=lambda *xs: round_to(seal(fn(*(y.astype(jnp.float32) for y in xs))), x.dtype),
    )  # fmt: skip


def round_to(x: Array, dtype: np.dtype | type[np.generic]) -> Array:
    """A result in the dtype of a tensor: a float as `cast` rounds it by default."""
    if x.dtype == dtype and x.dtype.itemsize >= 4 and on_host(x):
        return x
    known = BY_NAME[np.dtype(dtype).name]
    return _float(x, known, None) if known.is_float and kind(x) == "float" else x.astype(dtype, copy=False)


# --- Casts ------------------------------------------------------------------------------------------------------------


def check_overflow(source: DType, target: DType, overflow: str | None) -> None:
    """Refuse a treatment of overflow that the dtypes do not have."""
    hint = "Write `overflow: saturate`, or leave it out."
    if overflow == "nan" and target.is_integer:
        raise Refusal("overflow-unknown", f"{target} has no NaN", key="overflow", hint=hint)
    if overflow == "wrap" and not {source.kind, target.kind} <= {"int", "uint", "bool"}:
        found = f"only integers wrap, not {source} cast to {target}"
        raise Refusal("overflow-unknown", found, key="overflow", hint=hint)


def may_refuse(source: DType, target: DType, overflow: str | None) -> bool:
    """Whether some values of a dtype cannot be cast to another: integers that do not fit, NaN."""
    if overflow is not None or not target.is_integer or source.is_bool:
        return False
    if not source.is_integer:
        return True
    (least, most), (low, high) = bounds(source), bounds(target)
    return least < low or most > high


def bounds(dtype: DType) -> tuple[int, int]:
    """The least and the largest value of an integer dtype."""
    info = np.iinfo(to_numpy(dtype))
    return int(info.min), int(info.max)


@overload
def cast_to(x: np.ndarray, dtype: DType, overflow: str | None = None) -> tuple[np.ndarray, Flag]: ...
@overload
def cast_to(x: Array, dtype: DType, overflow: str | None = None) -> tuple[Array, Flag]: ...
def cast_to(x: Array, dtype: DType, overflow: str | None = None) -> tuple[Array, Flag]:
    """An array in another dtype, and whether that could be done with all of its values.

    To floats by rounding to nearest even, to integers towards zero, to bool by `!= 0`; of complex numbers the real part
    is taken.
    """
    xp = np if on_host(x) else jnp
    fits = xp.ones((), dtype=np.bool_)
    if dtype.is_bool:
        return nonzero(x), fits
    if dtype.is_complex:
        return _complex(x, dtype, overflow), fits
    real = xp.real(x) if kind(x) == "complex" else x
    if dtype.is_float:
        return (_float if kind(real) == "float" else _float_of_integers)(real, dtype, overflow), fits
    cast = _integer_of_floats if kind(real) == "float" else _integer
    return cast(real, dtype, overflow)


def _complex(x: Array, dtype: DType, overflow: str | None) -> Array:
    part = FLOAT64 if dtype.bits == 128 else FLOAT32
    if kind(x) != "complex":
        return cast_to(x, part, overflow)[0].astype(to_numpy(dtype))
    xp = np if on_host(x) else jnp
    real, imag = (_float(y, part, overflow) for y in (xp.real(x), xp.imag(x)))
    if not on_host(x):
        return jax.lax.complex(real, imag)
    out: np.ndarray[tuple[int, ...], np.dtype[np.complex128]] = np.empty(x.shape, to_numpy(dtype))
    out.real, out.imag = real, imag
    return out


def _float(x: Array, dtype: DType, overflow: str | None) -> Array:
    """Floats in another float dtype. Between float64 and smaller ones always by way of float32, as elsewhere."""
    if on_host(x) and dtype.bits == 8:
        return _by_upper_half(np.asarray(widen(x), np.float32), dtype, overflow)
    x = _within_reach(x, dtype, overflow)
    if on_host(x):
        return convert_float(x, to_numpy(dtype))
    x = to_float32(x) if x.dtype == np.float64 and dtype.bits < 64 else _in_width(x, dtype)
    return x.astype(to_numpy(dtype))


def _within_reach(x: Array, dtype: DType, overflow: str | None) -> Array:
    """Floats, those that a dtype cannot hold replaced by those that it takes for them."""
    if overflow != "saturate" and (overflow is not None or dtype.name not in (SATURATING, BARE_EXPONENT)):
        return x
    x = _in_width(widen(x), dtype)
    if dtype.name == BARE_EXPONENT:
        x = x.astype(np.float32) if on_host(x) or x.dtype != np.float64 else to_float32(x)
        x = (np if on_host(x) else jnp).where(nonzero(x), x, np.asarray(2.0**-127, x.dtype))
    if overflow != "saturate" and dtype.name != SATURATING:
        return x
    top = np.asarray(largest(dtype), x.dtype)
    # Not by `clip`, in which XLA takes subnormal numbers for zero.
    return np.clip(x, -top, top) if on_host(x) else jnp.where(jnp.abs(x) > top, jnp.copysign(top, x), x)


def _in_width(x: Array, dtype: DType) -> Array:
    """Floats in float64 if they are to become that."""
    if dtype.bits < 64 or x.dtype == np.float64:
        return x
    return x.astype(np.float64) if on_host(x) else to_float64(x)


def largest(dtype: DType) -> float:
    """The largest value of a float dtype."""
    import ml_dtypes

    return float(ml_dtypes.finfo(to_numpy(dtype)).max)


def _float_of_integers(x: Array, dtype: DType, overflow: str | None) -> Array:
    if dtype.bits == 8:  # float32 holds all integers that it can
        return _float(x.astype(np.float32), dtype, overflow)
    if overflow == "saturate" and kind(x) != "bool" and bounds(BY_NAME[x.dtype.name])[1] > (most := largest(dtype)):
        x = x.clip(max(-int(most), bounds(BY_NAME[x.dtype.name])[0]), int(most))
    return x.astype(to_numpy(dtype))


def _integer(x: Array, dtype: DType, overflow: str | None) -> tuple[Array, Flag]:
    """Integers, or booleans, in another integer dtype."""
    xp = np if on_host(x) else jnp
    source = BY_NAME[x.dtype.name]
    if overflow == "wrap" or (overflow is None and not may_refuse(source, dtype, None)) or source.is_bool:
        return x.astype(to_numpy(dtype)), xp.ones((), dtype=np.bool_)
    (least, most), (low, high) = bounds(source), bounds(dtype)
    low, high = (np.asarray(n, x.dtype) for n in (max(low, least), min(high, most)))
    if overflow == "saturate":
        return x.clip(low, high).astype(to_numpy(dtype)), xp.ones((), dtype=np.bool_)
    return x.astype(to_numpy(dtype)), xp.all((x >= low) & (x <= high))


def _integer_of_floats(x: Array, dtype: DType, overflow: str | None) -> tuple[Array, Flag]:
    """Floats cut off towards zero. Saturated, NaN becomes 0."""
    xp = np if on_host(x) else jnp
    whole, (low, high) = xp.trunc(widen(x)), bounds(dtype)
    over, under = whole >= float(high + 1), whole < float(low)  # powers of two, which every float holds
    fits = ~(over | under | xp.isnan(whole))
    made = xp.where(fits, whole, xp.zeros_like(whole)).astype(to_numpy(dtype))
    if overflow is None:
        return made, xp.all(fits)
    top, bottom = (np.asarray(n, to_numpy(dtype)) for n in (high, low))
    return xp.where(over, top, xp.where(under, bottom, made)), xp.ones((), dtype=np.bool_)


def convert_float(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A numpy array of floats in another float dtype of two bytes or more, rounded to nearest even; from float64 by way
    of float32."""
    if x.dtype.itemsize == 1:
        x = widen(x)
    elif x.dtype == np.float16 or (x.dtype.itemsize == 2 and dtype.itemsize == 2):
        x = x.astype(np.float32) * np.float32(1)  # which makes every NaN quiet, as compiled code does
    elif x.dtype == np.float64 and dtype.itemsize == 2:
        x = x.astype(np.float32)
    return x.astype(dtype, copy=False)


def _by_upper_half(x: np.ndarray, dtype: DType, overflow: str | None) -> np.ndarray:
    """Floats of four bytes rounded to one, five times as fast as by `astype`: by a table of what becomes of the upper
    half of their bits, the last of which tells whether there is anything below."""
    bits = np.asarray(x).view(np.uint32)
    upper = (bits >> 16).astype(np.uint16)
    upper |= (bits << 16) != 0
    return entries(_round_upper(dtype, overflow), upper)


@cache
def _round_upper(dtype: DType, overflow: str | None) -> np.ndarray:
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    with np.errstate(all="ignore"):
        return np.asarray(_within_reach(upper.view(np.float32), dtype, overflow)).astype(to_numpy(dtype))
