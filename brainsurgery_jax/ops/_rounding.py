"""Conversions of short floats on numpy arrays, with the bits that compiled code gives."""

from __future__ import annotations

from typing import Any

from brainsurgery_jax._lazy import np


def converted(x: Any, dtype: Any) -> Any:
    """An array of floats in another float dtype, rounded to nearest even; from float64 by way of float32."""
    short = dtype.itemsize < 4
    if x.dtype == np.float16 or (x.dtype.itemsize == 2 and short):
        x = x.astype(np.float32) * np.float32(1)  # which makes every NaN quiet, as compiled code does
    elif (x.dtype == np.float64 and short) or "float8_e8m0fnu" in (x.dtype.name, dtype.name):
        x = x.astype(np.float32)  # ml_dtypes knows no way between it and some others
    return x.astype(dtype, copy=False)
