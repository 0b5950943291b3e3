"""Numbers of ordinary size, of which compiled code on a CPU computes what numpy does.

XLA takes subnormal numbers for zero there, and NaN may get other bits. Of numbers of ordinary size a few sums, products
and quotients are neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from brainsurgery_jax._lazy import jax, jnp, np

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
    """A traced float32 result, finite where all operands are ordinary, rounded to bfloat16 or float32; with all bits
    set (a NaN that no computation gives) where one of them is not.

    All are of one shape. Compiled, it costs less than a look at the operands before.
    """
    odd = jnp.zeros(result.shape, bool)
    for like in {x.dtype: x for x in operands}.values():
        unsigned, low, high = _bounds(like.dtype)
        sizes = [jax.lax.bitcast_convert_type(x, unsigned) << unsigned(1) for x in operands if x.dtype == like.dtype]
        least = reduce(jnp.minimum, [bits - unsigned(1) for bits in sizes])  # zero is the largest of all
        odd |= (least < unsigned(low - 1)) | (reduce(jnp.maximum, sizes) >= unsigned(high))
    bits = jax.lax.bitcast_convert_type(result, np.uint32)
    if dtype.itemsize == 2:
        bits = _upper_half(bits)
    unsigned = bits.dtype.type
    return jax.lax.bitcast_convert_type(jnp.where(odd, ~unsigned(0), bits), dtype)


def _upper_half(bits: jax.Array) -> jax.Array:
    """The bits of the nearest bfloat16, even of two, to those of a finite float32. XLA's own code looks for NaN, too,
    and takes half of the time of a merge."""
    half, sixteen = np.uint32(0x7FFF), np.uint32(16)
    return ((bits + half + ((bits >> sixteen) & np.uint32(1))) >> sixteen).astype(np.uint16)


def is_marked(result: np.ndarray) -> bool:
    """Whether an element of such a result is marked."""
    bits = result.view(f"u{result.dtype.itemsize}")
    return bool(bits.size) and int(bits.max()) == np.iinfo(bits.dtype).max


def _bounds(dtype: np.dtype) -> tuple[type[np.unsignedinteger], int, int]:
    """The unsigned integers of a float, and the bits without the sign of the least ordinary number and of the first
    that is too large."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    low, high = (int(np.asarray(2.0**power, dtype).view(unsigned)) << 1 for power in (LEAST, GREATEST))
    return unsigned.type, low, high
