"""What stands in brackets behind a tensor of an expression."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import TYPE_CHECKING

from brainsurgery_jax.expression.program import IndexPart

if TYPE_CHECKING:
    from brainsurgery_jax._lazy import jax


def pick(x: jax.Array, parts: Sequence[object]) -> jax.Array:
    """The part of a traced tensor. Raises ValueError for what is no index of it."""
    for part in parts:
        bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
        if any(isinstance(b, bool) or not isinstance(b, int | None | EllipsisType) for b in bounds):
            raise ValueError("between brackets stand whole numbers, slices, None and ...; `take` picks by a list")
    _check_bounds(x.shape, parts)
    return x[tuple(parts)]


def _fill_ellipsis(shape: Sequence[int], parts: Sequence[object]) -> list[object]:
    """Parts of an index, one for each axis; those that an ellipsis stands for written out."""
    taken = sum(p is not None and p is not Ellipsis for p in parts)
    rest: list[object] = [slice(None)] * (len(shape) - taken)
    at = next((i for i, p in enumerate(parts) if p is Ellipsis), len(parts))
    return [*parts[:at], *rest, *parts[at + 1 :]]


def _check_bounds(shape: Sequence[int], parts: Sequence[object]) -> None:
    """Refuse an integer index outside of its axis, which JAX takes for the nearest one inside."""
    taken = [p for p in _fill_ellipsis(shape, parts) if p is not None]
    for axis, (part, size) in enumerate(zip(taken, shape, strict=False)):
        if isinstance(part, int) and not -size <= part < size:
            raise ValueError(f"index {part} is out of range for axis {axis} of size {size}")


def plain_parts(shape: Sequence[int], parts: Sequence[object]) -> tuple[IndexPart, ...]:
    """An index as plain data: None for a new axis, a number, or `(start, stop, step)`, as `range` takes them."""
    sizes = iter(shape)
    made: list[IndexPart] = []
    for part in _fill_ellipsis(shape, parts):
        if part is None:
            made.append(None)
        elif isinstance(part, slice):
            made.append(part.indices(next(sizes)))
        else:
            assert isinstance(part, int)
            made.append(part % next(sizes))
    return tuple(made)
