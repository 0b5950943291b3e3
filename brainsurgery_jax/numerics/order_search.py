"""The passes that find elements at places of the sorted order of tensors that are computed block by block.

A sample gives windows (`windows.py`). Then a reading counts what is below them and keeps what is in them. If a window
missed its place, the reading is repeated with a better one: the answer never depends on the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.numerics.windows import (
    KeyWindow,
    Near,
    is_nan,
    join_near,
    keys_of,
    look_near,
    narrow,
    sample_step,
    value_of,
    windows_of,
)
from brainsurgery_jax.reduction import Again, Reduction

Derive = Callable[[Sequence[Array], Mapping[str, Any]], list[Array]]
"""What is ranked: floats without a sign, one tensor or several, of the operands and the static parameters."""

Places = Callable[[int, Any, Mapping[str, Any], int], tuple[Any, ...]]
"""`(elements, those that are not zero, static parameters, number of the tensor) -> places in the sorted order`."""


SLAB = 1 << 18
"""Elements that are derived and looked at together: what is made on the way stays in the cache, and threads that call
numpy seldom wait for the interpreter."""


class Sought(NamedTuple):
    """What is known of a derived tensor after some passes: the windows of its places. `nan`: it holds NaN, and no place
    means anything."""

    windows: tuple[KeyWindow, ...]
    nan: bool = False


class OrderSearch(NamedTuple):
    """The search for places in the sorted order of derived tensors, each of `size` elements of a float dtype.

    `shape`: how many tensors are derived, and how many places each has. `by_nonzero`: places depend on how many
    elements are not zero. Answers are float64 vectors: those of the first tensor before those of the second, infinity
    for a place behind the last element, NaN for a tensor that holds NaN.
    """

    derive: Derive
    places: Places
    shape: tuple[int, int]
    size: int
    dtype: Any
    static: Mapping[str, Any]
    by_nonzero: bool

    def passes(self) -> tuple[Callable[[Any], Reduction], ...]:
        """The passes of a fold: one for few elements, else a sample, and all elements until each place is found."""
        return (self.gather,) if self.step == 1 else (self.gather, self.look)

    @property
    def step(self) -> int:
        return sample_step(self.size)

    def gather(self, _: None) -> Reduction:
        """The pass that takes a sample, of which the windows follow; of few elements all, and the answer."""

        def block(*xs: Array) -> list[list[np.ndarray]]:
            return [[x] for x in self._derive([x[:: self.step] for x in xs])]

        def merge(a: list[list[np.ndarray]], b: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
            return [x + y for x, y in zip(a, b, strict=True)]

        def finish(found: list[list[np.ndarray]]) -> Any:
            whole = enumerate(map(np.concatenate, found))
            if self.step == 1:
                return np.concatenate([self._sort(x, at) for at, x in whole])
            return tuple(self._estimate(x, at) for at, x in whole)

        return Reduction(block, merge, finish, self._nothing, unordered=True, sampled=self.step > 1)

    def look(self, known: tuple[Sought, ...]) -> Reduction:
        """The pass over all elements."""

        def near_of(xs: Sequence[Array]) -> list[Near]:
            made = self._derive(xs)
            near = [look_near(x, sought.windows) for x, sought in zip(made, known, strict=True)]
            if not self.by_nonzero:
                return near
            return [n._replace(nonzero=int(np.count_nonzero(x))) for n, x in zip(near, made, strict=True)]

        def block(*xs: Array) -> list[Near]:
            return reduce(merge, (near_of([x[at : at + SLAB] for x in xs]) for at in range(0, len(xs[0]), SLAB)))

        def merge(a: list[Near], b: list[Near]) -> list[Near]:
            return [join_near(x, y) for x, y in zip(a, b, strict=True)]

        def finish(found: list[Near]) -> Any:
            after = tuple(self._narrow(*pair, at) for at, pair in enumerate(zip(known, found, strict=True)))
            if not all(sought.nan or all(w.found for w in sought.windows) for sought in after):
                return Again(after)
            return np.concatenate([self._values(s, n, at) for at, (s, n) in enumerate(zip(after, found, strict=True))])

        return Reduction(block, merge, finish, self._nothing, unordered=True)

    # --- one of the derived tensors

    @property
    def _nothing(self) -> Array:
        return np.full(self.shape[0] * self.shape[1], np.nan)

    def _derive(self, xs: Sequence[Array]) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            return [np.ascontiguousarray(x) for x in self.derive(xs, self.static)]

    def _places(self, nonzero: float, at: int) -> list[int]:
        return [int(p) for p in self.places(self.size, nonzero, self.static, at)]

    def _inside(self, nonzero: float, at: int) -> list[int]:
        return [min(p, self.size - 1) for p in self._places(nonzero, at)]

    def _sort(self, x: np.ndarray, at: int) -> Array:
        wanted = self._places(int(np.count_nonzero(x)), at)
        if np.isnan(x).any():
            return np.full(len(wanted), np.nan)
        keys = np.sort(keys_of(x))
        found = [value_of(int(keys[p]), x.dtype) if p < x.size else np.inf for p in wanted]
        return np.array(found, np.float64)

    def _estimate(self, x: np.ndarray, at: int) -> Sought:
        nonzero = int(np.count_nonzero(x)) / x.size * self.size
        return Sought(windows_of(x, self._inside(nonzero, at), self.size))

    def _narrow(self, sought: Sought, near: Near, at: int) -> Sought:
        if is_nan(near.most, self.dtype) or is_nan(near.least, self.dtype):
            return Sought((), nan=True)
        return Sought(narrow(sought.windows, self._inside(near.nonzero, at), near))

    def _values(self, sought: Sought, near: Near, at: int) -> Array:
        wanted = self._places(near.nonzero, at)
        if sought.nan:
            return np.full(len(wanted), np.nan)
        found = [value_of(w.low, self.dtype) if p < self.size else np.inf
                 for w, p in zip(sought.windows, wanted, strict=True)]  # fmt: skip
        return np.array(found, np.float64)
