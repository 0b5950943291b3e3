"""Boxes of row-major tensors, put together from runs of consecutive elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from brainsurgery_jax.index.boxes import Box, box_shape
from brainsurgery_jax.store.io.arrays import byte_view, empty_aligned
from brainsurgery_jax.store.io.boxes import BoxRead, pieces

if TYPE_CHECKING:
    import numpy as np

Fill = Callable[[memoryview, int], None]
"""`fill(view, start)` fills a view with the bytes of the elements from `start` on."""


def read_box(shape: tuple[int, ...], dtype: np.dtype, box: Box, fill: Fill) -> np.ndarray:
    """The box of a tensor of that shape, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
    result = empty_aligned(box_shape(box), dtype)
    scratch = None  # private to this call: memory that was handed out is never used again
    for piece in pieces(shape, box, dtype.itemsize):
        if piece.strides is None:
            fill(byte_view(result[(*piece.where, ...)]), piece.start)
            continue
        if scratch is None:
            scratch = empty_aligned((piece.length,), dtype)  # the first piece is the longest
        fill(byte_view(scratch[: piece.length]), piece.start)
        result[piece.where] = _view_strided(scratch, piece)
    return result


def _view_strided(scratch: np.ndarray, piece: BoxRead) -> np.ndarray:
    import numpy as np

    assert piece.strides is not None
    strides = tuple(stride * scratch.itemsize for stride in piece.strides)
    return np.ndarray(piece.shape, scratch.dtype, buffer=scratch, strides=strides)
