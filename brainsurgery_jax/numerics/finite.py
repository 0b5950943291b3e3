"""Whether floats hold NaN or infinity, by their bits: at the speed of a cache, where `numpy.isfinite` of small floats
takes as long as a cast."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from brainsurgery_jax._lazy import np


class _Finite(NamedTuple):
    """Bits of finite floats, as whole numbers without sign. `lone`: those of the only NaN, in dtypes in which it stands
    in the place of -0."""

    most: int
    least: int
    lone: int | None


def holds_nonfinite(x: np.ndarray) -> bool:
    """Whether any element of a numpy array of floats, or of complex numbers, is NaN or infinite. Never of dtypes that
    have neither."""
    if not x.size:
        return False
    if x.dtype.kind == "c":
        return holds_nonfinite(np.real(x)) or holds_nonfinite(np.imag(x))
    finite = _finite(x.dtype)
    size = x.dtype.itemsize
    # As whole numbers, the bits of positive floats are in the order of the floats, NaN last; so are those of negative.
    bits = x.view(f"u{size}")
    if int(x.view(f"i{size}").max()) > finite.most or int(bits.max()) > finite.least:
        return True
    return finite.lone is not None and bool((bits == finite.lone).any())


@cache
def _finite(dtype: np.dtype) -> _Finite:
    import ml_dtypes

    known = ml_dtypes.finfo(dtype)
    if known.bits < 8:  # no bits are left for NaN
        return _Finite(0xFF, 0xFF, None)
    most, least = np.asarray([known.max, known.min]).astype(dtype).view(f"u{dtype.itemsize}").tolist()
    return _Finite(most, max(most, least), 0x80 if dtype.name.endswith("fnuz") else None)
