"""Numbers in double precision, and what integers of eight bytes have beyond it: 2**53 + 1 is no double."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from brainsurgery_jax._lazy import jax, np

if TYPE_CHECKING:
    A = TypeVar("A", np.ndarray, jax.Array)


def as64(x: A) -> A:
    """The array `x` in double precision, complex if `x` is."""
    return x.astype(np.complex128 if np.issubdtype(x.dtype, np.complexfloating) else np.float64)


def as_single(x: np.ndarray) -> np.ndarray:
    """Short floats as float32, which holds all their values and which numpy is quick with; else the same."""
    return x.astype(np.float32) if x.itemsize < 4 and not is_integral(x.dtype) else x


def is_integral(dtype: np.dtype) -> bool:
    """Whether a dtype is of integers or booleans."""
    return dtype == np.bool_ or np.issubdtype(dtype, np.integer)


def differences(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`x - y`, rounded to double precision at the end alone: 0 only where they are equal."""
    return correct(as64(x) - as64(y), x, y)


def unequal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`x != y`, also for integers beside floats, which numpy compares by their doubles."""
    return differences(x, y) != 0 if is_long(x) != is_long(y) else x != y


def correct(gaps: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The differences of the doubles of `x` and `y`, made those of themselves."""
    return gaps + (_rest(x) - _rest(y)) if is_long(x) or is_long(y) else gaps


def is_long(x: np.ndarray) -> bool:
    """Whether an array holds integers that a double may not."""
    return x.itemsize == 8 and np.issubdtype(x.dtype, np.integer)


def _rest(x: np.ndarray) -> np.ndarray | float:
    """What the elements of an array have beyond their doubles."""
    if not is_long(x):
        return 0.0
    double = x.astype(np.float64)
    bits = 64 if np.issubdtype(x.dtype, np.unsignedinteger) else 63
    held = np.minimum(double, np.nextafter(2.0**bits, 0))  # as the dtype can hold it
    return (x - held.astype(x.dtype)).view(np.int64) + (held - double)
