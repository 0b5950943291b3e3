"""Exact order statistics of what is computed of several tensors: thresholds that keep a share of their elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import FLOAT64, Aval, to_numpy
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.merging.tensors import Params, anywhere, namespace
from brainsurgery_jax.numerics.math import wide
from brainsurgery_jax.numerics.ranks import find_places
from brainsurgery_jax.op import Avals, Passes, kernel
from brainsurgery_jax.protocol import Reduction

Derive = Callable[[Sequence[Array], Mapping[str, Any]], list[Array]]
"""What is ranked: floats without a sign, one tensor or several, of the operands and the static parameters."""

Places = Callable[[int, Any, Mapping[str, Any], int], tuple[Any, ...]]
"""`(elements, those that are not zero, static parameters, number of the tensor) -> places in the sorted order`."""


SLAB = 1 << 18
"""Elements that are derived and counted at a time."""


class Ranked(NamedTuple):
    """What is known of each tensor after some passes: how many elements are not zero, and where the search is."""

    nonzero: tuple[int, ...]
    searches: tuple[Any, ...]


def order_statistics(
    name: str,
    derive: Derive,
    places: Places,
    shape: Callable[[Params], tuple[int, int]],
    by_nonzero: bool = False,
) -> Kernel[Any, Array]:
    """A kernel that gives the elements at some places of the sorted order, of one or several derived tensors: a float64
    vector, those of the first tensor before those of the second; infinity for a place behind the last.

    `shape(static)`: how many tensors are derived, and how many places each has. The elements are counted digit by digit
    while the operands go by in blocks. `by_nonzero`: places depend on how many elements are not zero.
    """

    def result(avals: Avals, params: Params) -> Avals:
        tensors, each = shape(params)
        return (Aval((tensors * each,), FLOAT64),)

    def of_whole(*xs: Array, **static: Any) -> Array:
        xp = namespace(xs[0])
        found = []
        for at, x in enumerate(derive([x.reshape(-1) for x in xs], static)):
            wanted = xp.stack(
                [xp.asarray(p) for p in places(x.size, xp.count_nonzero(x).astype(np.float64), static, at)]
            )
            last = xp.minimum(wanted, x.size - 1).astype(np.int32)
            found.append(xp.where(wanted < x.size, xp.take(xp.sort(x), last).astype(np.float64), np.inf))
        return xp.concatenate(found)

    def passes(avals: Avals, params: Params) -> Passes:
        dtype = to_numpy(wide(avals[0].dtype))
        search = _Search(derive, places, shape(params), avals[0].size, dtype, params, by_nonzero)
        return tuple(partial(search.reduction, step) for step in range(search.passes))

    return kernel(name, result=result, host=anywhere, fold=passes)(of_whole)


class _Search(NamedTuple):
    """The search for places in the sorted order of derived tensors: `shape` is their number, and places of each."""

    derive: Derive
    places: Places
    shape: tuple[int, int]
    size: int
    dtype: Any
    static: Params
    by_nonzero: bool

    @property
    def passes(self) -> int:
        return max(1, self.dtype.itemsize // 2)

    def reduction(self, step: int, before: Ranked | None) -> Reduction:
        """Pass number `step`."""
        tensors, each = self.shape
        # What a first pass counts depends on no place.
        known = before or Ranked((self.size,) * tensors, (None,) * tensors)
        counting = [self._one(at, step, known) for at in range(tensors)]

        def count(xs: Sequence[Array]) -> tuple[Any, Array]:
            with np.errstate(all="ignore"):
                made = [np.ascontiguousarray(x) for x in self.derive(xs, self.static)]
            nonzero = [np.count_nonzero(x) if before is None and self.by_nonzero else 0 for x in made]
            return tuple(one.block(x) for one, x in zip(counting, made, strict=True)), np.array(nonzero)

        def block(*xs: Array) -> tuple[Any, Array]:
            return reduce(merge, (count([x[at : at + SLAB] for x in xs]) for at in range(0, len(xs[0]), SLAB)))

        def merge(a: Any, b: Any) -> Any:
            joined = (one.merge(x, y) for one, x, y in zip(counting, a[0], b[0], strict=True))
            return tuple(joined), a[1] + b[1]

        def finish(found: Any) -> Any:
            counts = tuple(map(int, found[1])) if before is None else known.nonzero
            after = Ranked(counts, known.searches)
            answers = [self._one(at, step, after).finish(x) for at, x in enumerate(found[0])]
            return np.concatenate(answers) if step == self.passes - 1 else Ranked(counts, tuple(answers))

        return Reduction(block, merge, finish, np.full(tensors * each, np.nan), unordered=True)

    def _one(self, at: int, step: int, known: Ranked) -> Reduction:
        """The pass for one of the derived tensors."""
        wanted = [int(p) for p in self.places(self.size, known.nonzero[at], self.static, at)]
        beyond = np.array(wanted) >= self.size

        def finish(found: Array) -> Array:
            return np.where(beyond, np.inf, found.astype(np.float64))

        inside = [min(p, self.size - 1) for p in wanted]
        return find_places(self.dtype, inside, finish, np.full(self.shape[1], np.nan))[step](known.searches[at])
