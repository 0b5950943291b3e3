"""Sums of squares of numpy arrays in double precision, a piece at a time, so that what is made wider stays in the
cache."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from brainsurgery_jax._lazy import np

PIECE = 1 << 17
"""Elements in double precision at a time."""

PASSING = 4
"""Bytes that summing takes for each element of a block, where it goes by pieces: a piece in double precision."""

_ROW = 1 << 12


def squares_of_rows(y: np.ndarray) -> np.ndarray:
    """The sum of squares along the last axis of floats, by runs of it: longer ones BLAS would cut by the number of its
    threads, and wait for them."""
    whole = y.shape[-1] - y.shape[-1] % _ROW
    runs, rest = y[..., :whole].reshape(*y.shape[:-1], -1, _ROW), y[..., whole:]
    return np.vecdot(runs, runs).sum(axis=-1) + np.vecdot(rest, rest)


def goes_by_pieces(ndim: int, axes: Sequence[int]) -> bool:
    """Whether squares are summed over the last axes, so that rows that lie in order are looked at piece by piece."""
    return all(axis >= ndim - len(axes) for axis in axes)


def sum_squares(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The sum of squares of real numbers over axes, which are kept."""
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    if not x.size or not x.flags.c_contiguous or not goes_by_pieces(x.ndim, axes):
        y = x.astype(np.float64)
        return np.sum(np.square(y, out=y) if y.ndim else np.square(y), axis=tuple(axes), keepdims=True)
    count = prod(x.shape[: x.ndim - len(axes)])
    rows = x.reshape(count, -1)
    most = max(1, PIECE // rows.shape[1])
    made = [_add_up(rows[at : at + most]) for at in range(0, count, most)]
    return np.concatenate(made).reshape(kept)


def _add_up(rows: np.ndarray) -> np.ndarray:
    """The sums of squares of rows that are one piece, or of one row of many."""
    parts = (rows[:, at : at + PIECE].astype(np.float64) for at in range(0, rows.shape[1], PIECE))
    return np.sum([squares_of_rows(part) for part in parts], axis=0)
