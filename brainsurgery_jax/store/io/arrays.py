"""The door between our dtypes and numpy: element types by name, and fresh memory aligned for zero-copy use."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from brainsurgery_jax.dtypes import DType, to_numpy
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.recycling import empty_bytes

if TYPE_CHECKING:
    import numpy as np

ALIGNMENT = 64
"""XLA takes host memory without a copy if it starts at a multiple of this."""


def numpy_dtype(dtype: DType, *, path: object = "array", tensor: str | None = None) -> np.dtype:
    """The numpy dtype of our dtype; `path` and `tensor` say in the error what was being read or written."""
    if dtype.numpy is None:
        raise StoreError(
            path,
            f"the elements of dtype {dtype} cannot be read: it is carried as packed bytes only",
            tensor=tensor,
            remedy="Such a tensor can be copied, renamed and deleted whole, but not sliced or computed on.",
        )
    try:
        return to_numpy(dtype)
    except TypeError as error:
        remedy = "Update it: `pip install -U ml_dtypes`."
        raise StoreError(path, f"the installed ml_dtypes has no {dtype}", tensor=tensor, remedy=remedy) from error


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A fresh uninitialised C-contiguous array that starts at a multiple of 64 bytes."""
    nbytes = prod(shape) * dtype.itemsize
    memory = empty_bytes(nbytes + ALIGNMENT)
    skip = -memory.__array_interface__["data"][0] % ALIGNMENT  # as `ctypes.data`, which takes ten times as long
    return memory[skip : skip + nbytes].view(dtype).reshape(shape)


def byte_view(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, writable if it is; not a copy."""
    import numpy as np

    assert array.flags.c_contiguous, "only contiguous arrays have a byte view"
    return array.reshape(-1).view(np.uint8).data  # ml_dtypes arrays have no buffer of their own
