"""Tables in place of arithmetic: a function of one short number has few values, and looking one up takes half a
nanosecond whatever the function is."""

from __future__ import annotations

from brainsurgery_jax._lazy import np

PIECE = 1 << 16
"""Elements that are looked up at a time: numpy wants their places in eight bytes each, and these stay in the cache."""


def look_up(table: np.ndarray, at: np.ndarray, out: np.ndarray) -> None:
    """`out[:] = table[at]`, where `at` are whole numbers that are places of the table, all arrays flat."""
    item = f"u{table.itemsize}"  # numpy moves its own types faster
    table, made = table.view(item), out.view(item)
    places = np.empty(min(PIECE, at.size), np.intp)
    for start in range(0, at.size, PIECE):
        piece = at[start : start + PIECE]
        places[: piece.size] = piece
        # Of its modes the fastest.
        np.take(table, places[: piece.size], out=made[start : start + PIECE], mode="wrap")


def patterns(dtype: np.dtype) -> np.ndarray:
    """All values of a dtype of one or two bytes, each at the place that its bits are read as a whole number."""
    return np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
