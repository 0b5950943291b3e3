"""Bringing the elements of an array into row-major order, at the speed of memory."""

from __future__ import annotations

from brainsurgery_jax._lazy import np

TILE = 512
"""Side of the squares that are transposed at a time: two of them fit into a core's own cache."""

PAD = 32
"""Elements between the rows of a square in hand: at a distance of a power of two they would push each other out of the
cache. (Of a transposed matrix of 32 MB numpy alone copies 0.15 GB/s, square by square it is 1 GB/s.)"""

LEAST = 32
"""Shorter axes are not worth it."""


def in_order(array: np.ndarray) -> np.ndarray:
    """Return the array in row-major order; itself if it already is."""
    if array.flags.c_contiguous:  # as are scalars, of which numpy's own function makes vectors
        return array
    if array.ndim < 2:
        return np.ascontiguousarray(array)
    near = min(range(array.ndim), key=lambda axis: array.strides[axis])
    if near == array.ndim - 1 or min(array.shape[near], array.shape[-1]) < LEAST:
        return np.ascontiguousarray(array)
    out = np.empty(array.shape, array.dtype)
    square = np.empty((TILE, TILE + PAD), array.dtype)
    from_, to = (x.swapaxes(near, -2) for x in (array, out))
    for at in np.ndindex(*from_.shape[:-2]):
        _transpose(from_[at], to[at], square)
    return out


def _transpose(from_: np.ndarray, to: np.ndarray, square: np.ndarray) -> None:
    """Copy a matrix from column-major to row-major order."""
    rows, columns = from_.shape
    for top in range(0, rows, TILE):
        for left in range(0, columns, TILE):
            part = from_[top : top + TILE, left : left + TILE]
            held = square[: part.shape[1], : part.shape[0]]
            held[...] = part.T
            to[top : top + TILE, left : left + TILE] = held.T
