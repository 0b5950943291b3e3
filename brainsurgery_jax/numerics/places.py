"""Exact order statistics of one float tensor that goes by in blocks: a sample first, then one count.

`ranks.py` counts digits and reads the tensor once for each 16 bits of an element. Here a sample says about where the
places are; `windows.py` counts what is below and keeps what is near. The tensor is read again only where the sample
misled, and no answer depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.numerics.windows import (
    KeyWindow,
    Near,
    is_nan,
    join_near,
    look_near,
    narrow,
    sample_step,
    value_of,
    windows_of,
)
from brainsurgery_jax.reduction import Again, Reduction

PIECE = 1 << 18
"""Elements that are looked at together, so that what is made on the way stays in the cache."""

PASSING = 4
"""Bytes that looking takes for each element of a block: keys and masks of a piece of it, and what is kept."""


class PlaceSearch(NamedTuple):
    """The search for the elements of a tensor of `size` float32 or float64 at `places` of the sorted order, -0 before
    0. The answer is `finish(elements)`, or `nan` where the tensor holds NaN."""

    dtype: np.dtype
    places: Sequence[int]
    size: int
    finish: Callable[[np.ndarray], object]
    nan: object

    @staticmethod
    def pays(dtype: np.dtype, size: int) -> bool:
        """Whether a sample is smaller than the tensor, and counting digits takes more than one reading of it."""
        return np.issubdtype(dtype, np.floating) and dtype.itemsize >= 4 and sample_step(size) > 1

    def passes(self) -> tuple[Callable[..., Reduction], ...]:
        """A sample, and a count of all elements, which is repeated while a place is not found."""
        return self._sample, self._count

    def _sample(self, _: None) -> Reduction[tuple[np.ndarray, ...], tuple[KeyWindow, ...]]:
        step = sample_step(self.size)

        def take(x: np.ndarray) -> tuple[np.ndarray, ...]:
            return (np.ascontiguousarray(x[::step]),)

        def estimate(sample: tuple[np.ndarray, ...]) -> tuple[KeyWindow, ...]:
            return windows_of(np.concatenate(sample), self.places, self.size)

        return Reduction(take, tuple.__add__, estimate, (), unordered=True, passing=PASSING, sampled=True)

    def _count(self, windows: tuple[KeyWindow, ...]) -> Reduction[Near, object]:
        return Reduction(
            partial(_look, windows), join_near, partial(self._answer, windows), self.nan,
            unordered=True, passing=PASSING,
        )  # fmt: skip

    def _answer(self, windows: tuple[KeyWindow, ...], near: Near) -> object:
        if is_nan(near.most, self.dtype) or is_nan(near.least, self.dtype):
            return self.nan
        better = narrow(windows, self.places, _spread(near, windows))
        if not all(window.found for window in better):
            return Again(better)
        return self.finish(np.array([value_of(window.low, self.dtype) for window in better], self.dtype))


def _look(windows: tuple[KeyWindow, ...], x: np.ndarray) -> Near:
    """What a block says of the windows, each once: neighbours in the order share one."""
    apart = tuple(dict.fromkeys(windows))
    return reduce(join_near, (look_near(x[at : at + PIECE], apart) for at in range(0, x.size, PIECE)))


def _spread(near: Near, windows: tuple[KeyWindow, ...]) -> Near:
    """What is known of each window, where it is known of each that differs."""
    at = [list(dict.fromkeys(windows)).index(window) for window in windows]
    return near._replace(below=tuple(near.below[n] for n in at), inside=tuple(near.inside[n] for n in at))
