"""Sums and extremes of tensors that go by in blocks, over all axes or some, merged block by block.

NaN is a value like others here, as in numpy: a sum, mean, norm, extreme or quantile of what holds NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.index.boxes import box_shape, cover
from brainsurgery_jax.reduction import Answer, Reduction

Shape = tuple[int, ...]
Key = tuple[slice, ...]
"""The elements of a result that a part goes into; all of them without any slice."""
Values = tuple["np.ndarray", ...]


class Contribution(NamedTuple):
    """Partial values of a part of a tensor, and where they are in the result, whose reduced axes have size 1."""

    key: Key
    values: Values


Merged = list[Contribution] | Values
"""Parts that are not joined yet, or the values of the whole result."""


class Total(NamedTuple):
    """A value that is kept for each element of the result: its dtype, what it is before the first part, and what joins
    two of them."""

    dtype: np.dtype
    start: float | np.ndarray
    join: Callable[[np.ndarray, np.ndarray], np.ndarray]


def add_up(dtype: np.dtype) -> Total:
    """A sum; -0 is what changes no number that is added to it."""
    return Total(dtype, np.negative(np.zeros((), dtype)) if np.issubdtype(dtype, np.inexact) else 0, np.add)


def keep_extreme(name: str, dtype: np.dtype) -> Total:
    """The least ("min") or greatest ("max") of the elements of a dtype that numpy knows; NaN if one is NaN."""
    low, high = (-np.inf, np.inf) if np.issubdtype(dtype, np.floating) else _integer_bounds(dtype)
    return Total(dtype, high, np.minimum) if name == "min" else Total(dtype, low, np.maximum)


def _integer_bounds(dtype: np.dtype) -> tuple[int, int]:
    return (0, 1) if dtype == np.bool_ else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def reduce_axes(
    shape: Shape, axes: Sequence[int], totals: Sequence[Total], step: Callable[[np.ndarray, Key], Values],
    finish: Callable[..., Answer],
) -> Reduction[Merged, Answer | None]:  # fmt: skip
    """A reduction of a tensor of `shape` over `axes`.

    `step(part, key)` gives a partial value for each of the totals, with the reduced axes kept, of a part of the tensor
    that goes into the elements `key` of the result. `finish(*values)` makes the answer of the totals, whose reduced
    axes have size 1. Parts follow from the places of the blocks alone, and are joined in their order.
    """
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))

    def block(start: int, x: np.ndarray) -> Merged:
        with np.errstate(all="ignore"):
            return [Contribution(key, step(part, key)) for part, key in _parts(shape, axes, start, x)]

    def fresh() -> Values:
        return tuple(np.full(kept, total.start, total.dtype) for total in totals)

    def add(into: Values, parts: Sequence[Contribution]) -> Values:
        with np.errstate(all="ignore"):
            for key, values in parts:
                for total, whole, value in zip(totals, into, values, strict=True):
                    whole[key] = total.join(whole[key], value)
        return into

    def merge(a: Merged, b: Merged) -> Merged:
        return add(a if isinstance(a, tuple) else add(fresh(), a), [Contribution((), b)] if isinstance(b, tuple) else b)

    def conclude(found: Merged) -> Answer:
        with np.errstate(all="ignore"):
            return finish(*(found if isinstance(found, tuple) else add(fresh(), found)))

    return Reduction(block, merge, conclude, conclude([]) if not prod(shape) else None, placed=True)


def _parts(shape: Shape, axes: Sequence[int], start: int, x: np.ndarray) -> Iterator[tuple[np.ndarray, Key]]:
    """The boxes that elements `x` of a tensor make up, from element `start` on, and where each goes in the result."""
    at = 0
    for box in cover(shape, start, start + x.size):
        own = box_shape(box)
        key = tuple(slice(0, 1) if axis in axes else slice(*span) for axis, span in enumerate(box))
        yield x[at : at + prod(own)].reshape(own), key
        at += prod(own)
