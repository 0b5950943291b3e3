"""`bs.heat_map`: a tensor, or how two differ, on a grid of few cells. Read in slabs, never held whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

from brainsurgery_jax._lazy import np
from brainsurgery_jax.checkpoint import Checkpoint, open_side
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.events import NEVER, StopSignal
from brainsurgery_jax.errors import Stopped
from brainsurgery_jax.looking.chosen import find_numbers

SLAB = 1 << 20
"""Elements that are read at a time, at most."""

MOST_CELLS = 1 << 20

Window = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A tensor on a grid of cells, axes but the last taken together as rows: `shape` [m, n].

    `window` is the part that was looked at: first and last + 1 of its rows and columns. `rows` and `columns` are the
    edges of the cells, in elements. `mean` and `absmax` [cells down, cells across] are in double precision, NaN where
    an element of the cell is.
    """

    shape: tuple[int, int]
    window: Window
    rows: np.ndarray
    columns: np.ndarray
    mean: np.ndarray
    absmax: np.ndarray

    def __repr__(self) -> str:
        (top, bottom), (left, right) = self.window
        cells = " x ".join(map(str, self.mean.shape))
        return f"<HeatMap: {cells} cells of [{top}:{bottom}, {left}:{right}] of {list(self.shape)}>"


def heat_map(
    path: str | os.PathLike[str] | Checkpoint,
    name: str,
    other: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    rows: int = 64,
    columns: int = 64,
    window: Window | None = None,
    stop: StopSignal = NEVER,
) -> HeatMap:
    """Average a tensor over the cells of a grid, to look at it or to zoom in, down to single values.

    **Arguments**: `path` is that of a file or a folder, or what `bs.open` returns; `name` is that of a tensor of real
    numbers. With `other` it is `other - path` that is looked at. `rows` and `columns`: cells, at most one for each
    element. `window`: the rows and columns to look at, `((first, last + 1), (first, last + 1))` (default: all), where
    all axes but the last are taken together as rows. `stop`: a `threading.Event`, or anything with `is_set`, that ends
    it early.
    **Returns** a `HeatMap` with the mean and the largest magnitude of each cell. At most 2**20 elements are read at a
    time, and of a matrix those in the window alone.
    **Raises** StoreError for what cannot be read, ValueError for a name that is not there, tensors of other shapes, and
    a window outside of the tensor, Stopped.
    **Example**:

    >>> bs.heat_map("model.safetensors", "bias", rows=1, columns=2).mean
    array([[0.5, 2.5]])
    """
    with ExitStack() as opened:
        sides = [open_side(side, opened, "heat_map") for side in ((path,) if other is None else (other, path))]
        first, *others = (find_numbers(side, name) for side in sides)
        if any(aval.shape != first.shape for aval in others):
            raise ValueError(f"'{name}' has the shapes {list(others[0].shape)} and {list(first.shape)}")
        shape = flat_shape(first)
        window = ((0, shape[0]), (0, shape[1])) if window is None else window
        _check(shape, window, (rows, columns))
        edges = _edges(window[0], rows), _edges(window[1], columns)
        totals, most = _measure(sides, name, *edges, stop)
        for side in sides:
            side.source.verify_unchanged()
        counts = np.outer(np.diff(edges[0]), np.diff(edges[1]))
        with np.errstate(all="ignore"):
            return HeatMap(shape, window, *edges, totals / counts, most)


def flat_shape(aval: Aval) -> tuple[int, int]:
    """Rows and columns of a tensor whose axes but the last are taken together."""
    return prod(aval.shape[:-1]), aval.shape[-1] if aval.shape else 1


def _check(shape: tuple[int, int], window: Window, cells: tuple[int, int]) -> None:
    if min(cells) < 1 or prod(cells) > MOST_CELLS:
        raise ValueError(f"a heat map has between 1 and {MOST_CELLS:,} cells, got {cells[0]} x {cells[1]}")
    if any(not 0 <= start < stop <= size for (start, stop), size in zip(window, shape, strict=True)):
        raise ValueError(f"the window {window} is not a part of {list(shape)}")


def _edges(ends: tuple[int, int], cells: int) -> np.ndarray:
    """The edges of so many cells, as even as whole elements allow, at most one for each element."""
    start, stop = ends
    cells = min(cells, stop - start)
    return start + np.arange(cells + 1) * (stop - start) // cells


def _measure(
    sides: list[Checkpoint], name: str, rows: np.ndarray, columns: np.ndarray, stop: StopSignal
) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the largest magnitude of each cell."""
    totals = np.zeros((len(rows) - 1, len(columns) - 1))
    most = np.zeros_like(totals)
    for (top, bottom), (left, right) in _slabs(rows, columns):
        if stop.is_set():
            raise Stopped
        piece = [(top, bottom), (left, right)]
        with np.errstate(all="ignore"):
            first, *others = (_read(side, name, piece) for side in sides)
            for other in others:
                first = first - other
            down, across = _starts(rows, top, bottom), _starts(columns, left, right)
            cell = np.ix_(_cells(rows, top, len(down)), _cells(columns, left, len(across)))
            totals[cell] += np.add.reduceat(np.add.reduceat(first, across, axis=1), down, axis=0)
            sizes = np.maximum.reduceat(np.maximum.reduceat(np.abs(first), across, axis=1), down, axis=0)
            most[cell] = np.maximum(most[cell], sizes)
    return totals, most


def _slabs(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Parts of the window of at most SLAB elements: rows together, or parts of one that is longer."""
    (top, bottom), (left, right) = (int(rows[0]), int(rows[-1])), (int(columns[0]), int(columns[-1]))
    width = min(right - left, SLAB)
    height = max(1, SLAB // width)
    for y in range(top, bottom, height):
        for x in range(left, right, width):
            yield (y, min(y + height, bottom)), (x, min(x + width, right))


def _starts(edges: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Where cells begin in a range, counted from its start, which is within the first."""
    inner = edges[(edges > start) & (edges < stop)]
    return np.concatenate([[0], inner - start])


def _cells(edges: np.ndarray, start: int, count: int) -> np.ndarray:
    first = int(np.searchsorted(edges, start, side="right")) - 1
    return np.arange(first, first + count)


def _read(side: Checkpoint, name: str, piece: list[tuple[int, int]]) -> np.ndarray:
    """A part of the tensor as a matrix, in double precision."""
    (top, bottom), (left, right) = piece
    aval, source, key = side.avals[name], side.source, side.prefix + name
    width = flat_shape(aval)[1]
    if len(aval.shape) == 2:
        found = source.read(key, ((top, bottom, 1), (left, right, 1)))
    elif right - left == width:
        found = source.read_range(key, top * width, bottom * width)
    else:
        found = np.stack([source.read_range(key, y * width + left, y * width + right) for y in range(top, bottom)])
    return found.reshape(bottom - top, right - left).astype(np.float64)
