"""Numbers in double precision, and what integers of eight bytes have beyond it: 2**53 + 1 is no double."""

from __future__ import annotations

from typing import Any

from brainsurgery_jax._lazy import np


def as64(x: Any) -> Any:
    """The array `x` in double precision, complex if `x` is."""
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def differences(x: Any, y: Any) -> Any:
    """`x - y`, rounded to double precision at the end alone: 0 only where they are equal."""
    return corrected(as64(x) - as64(y), x, y)


def unequal(x: Any, y: Any) -> Any:
    """`x != y`, also for integers beside floats, which numpy compares by their doubles."""
    return differences(x, y) != 0 if is_long(x) != is_long(y) else x != y


def corrected(gaps: Any, x: Any, y: Any) -> Any:
    """The differences of the doubles of `x` and `y`, made those of themselves."""
    return gaps + (_rest(x) - _rest(y)) if is_long(x) or is_long(y) else gaps


def is_long(x: Any) -> bool:
    """Whether an array holds integers that a double may not."""
    return x.dtype.kind in "iu" and x.itemsize == 8


def _rest(x: Any) -> Any:
    """What the elements of an array have beyond their doubles."""
    if not is_long(x):
        return 0.0
    double = x.astype(np.float64)
    held = np.minimum(double, np.nextafter(2.0 ** (64 if x.dtype.kind == "u" else 63), 0))  # as the dtype can hold it
    return (x - held.astype(x.dtype)).view(np.int64) + (held - double)
