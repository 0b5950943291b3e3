"""Numbers of ordinary size, of which compiled code on a CPU computes what numpy does.

XLA takes subnormal numbers for zero there, and NaN may get other bits. Of numbers of ordinary size a few sums, products
and quotients are neither.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def marked(result: jax.Array, operands: Sequence[jax.Array]) -> jax.Array:
    """A traced float result, with all bits set (a NaN that no computation gives) where an operand is not ordinary.

    All are of one shape. Compiled, it costs less than a look at the operands before.
    """
    odd = jnp.zeros(result.shape, bool)
    for x in operands:
        unsigned, low, high = _bounds(x.dtype)
        bits = jax.lax.bitcast_convert_type(x, unsigned) << unsigned(1)
        odd |= (bits != 0) & (bits - unsigned(low) >= unsigned(high - low))
    unsigned = np.dtype(f"u{result.dtype.itemsize}").type
    found = jnp.where(odd, ~unsigned(0), jax.lax.bitcast_convert_type(result, unsigned))
    return jax.lax.bitcast_convert_type(found, result.dtype)


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
