"""Numbers of ordinary size, of which compiled code on a CPU computes what numpy does.

XLA takes subnormal numbers for zero there, and NaN may get other bits. Of numbers of ordinary size a few sums, products
and quotients are neither.
"""

from __future__ import annotations

from brainsurgery_jax._lazy import np

LEAST = -40
"""The least exponent of an ordinary number that is not zero."""

GREATEST = 60
"""The exponent beyond all ordinary numbers."""


def are_ordinary(x: np.ndarray) -> bool:
    """Whether all of a vector (bfloat16, float32 or float64) are 0 or between 2^-40 and 2^60 in magnitude."""
    unsigned = np.dtype(f"u{x.itemsize}").type
    bits = x.view(unsigned) << unsigned(1)  # without the sign
    low, high = (int(np.asarray(2.0**power, x.dtype).view(unsigned)) << 1 for power in (LEAST, GREATEST))
    if not bits.size or bits.max() >= high:
        return not bits.size
    bits -= unsigned(2)  # so that zero is the largest of all
    return bool(bits.min() >= low - 2)
