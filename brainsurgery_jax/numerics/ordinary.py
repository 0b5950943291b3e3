"""Numbers of ordinary size, of which compiled code on a CPU computes what numpy does.

XLA takes subnormal numbers for zero there, and NaN may get other bits. Of numbers of ordinary size a few sums, products
and quotients are neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from brainsurgery_jax._lazy import jax, jnp, np
from brainsurgery_jax.dtypes import BFLOAT16, FLOAT32, to_numpy

LEAST = -40
"""The least exponent of an ordinary number that is not zero."""

GREATEST = 60
"""The exponent beyond all ordinary numbers."""


def are_ordinary(x: np.ndarray) -> bool:
    """Whether all of a vector (bfloat16, float32 or float64) are 0 or between 2^-40 and 2^60 in magnitude."""
    unsigned, low, high = _bounds(x.dtype)
    bits = x.view(unsigned) << unsigned(1)  # without the sign
    if not bits.size or bits.max() >= high:
        return not bits.size
    bits -= unsigned(2)  # so that zero is the largest of all
    return bool(bits.min() >= low - 2)


def marked(result: jax.Array, operands: Sequence[jax.Array], dtype: np.dtype) -> jax.Array:
    """A traced float32 result, rounded to bfloat16 or float32. All bits are set (a NaN that no computation gives) where
    an operand, in one of these dtypes, is not ordinary.

    All are of one shape. Compiled, it costs less than a look at the operands before.
    """
    assert result.dtype == np.float32 and {x.dtype for x in operands} | {dtype} <= set(
        map(to_numpy, (BFLOAT16, FLOAT32))
    )
    bits = jax.lax.bitcast_convert_type(result, np.uint32)
    if dtype != np.float32:
        bits = _to_bfloat16(bits)
    kinds = dict.fromkeys(x.dtype for x in operands)
    masks = [_mask([x for x in operands if x.dtype == kind]).astype(f"i{dtype.itemsize}") for kind in kinds]
    return jax.lax.bitcast_convert_type(bits | jax.lax.bitcast_convert_type(reduce(or_, masks), bits.dtype), dtype)


def _mask(operands: Sequence[jax.Array]) -> jax.Array:
    """Signed integers with all bits set where an operand is not ordinary, else none.

    They come from the sign bits of differences. XLA does not vectorize what it selects by comparisons, at least not for
    AVX2: that took three times as long as all the rest.
    """
    unsigned, low, high = _bounds(operands[0].dtype)
    width = 8 * np.dtype(unsigned).itemsize
    assert low < 1 << (width - 1) <= high, "what the signs below mean depends on it"
    magnitudes = [jax.lax.bitcast_convert_type(x, unsigned) << unsigned(1) for x in operands]
    least = reduce(jnp.minimum, [bits - unsigned(1) for bits in magnitudes])  # of 0 it is the greatest of all
    greatest = reduce(jnp.maximum, magnitudes)
    is_less = (least - unsigned(low - 1)) & ~least
    is_greater = greatest & (unsigned(high - 1) - greatest)
    signed = jax.lax.bitcast_convert_type(is_less | is_greater, f"i{width // 8}")
    return signed >> np.asarray(width - 1, signed.dtype)


def _to_bfloat16(bits: jax.Array) -> jax.Array:
    """The bits of the bfloat16 nearest to a float32, ties to even, which is no NaN. XLA's own code looks for NaN: it
    took half of the time of a compiled sum."""
    half, sixteen = np.uint32(0x7FFF), np.uint32(16)
    return ((bits + half + ((bits >> sixteen) & np.uint32(1))) >> sixteen).astype(np.uint16)


def is_marked(result: np.ndarray) -> bool:
    """Whether an element of such a result is marked."""
    bits = result.view(f"u{result.dtype.itemsize}")
    return bool(bits.size) and not ~np.maximum.reduce(bits)  # `max()` and `iinfo` take some microseconds more


def _bounds(dtype: np.dtype) -> tuple[type[np.unsignedinteger], int, int]:
    """The unsigned integers of a float, and the bits without the sign of the least ordinary number and of the first
    that is too large."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    low, high = (int(np.asarray(2.0**power, dtype).view(unsigned)) << 1 for power in (LEAST, GREATEST))
    return unsigned.type, low, high
