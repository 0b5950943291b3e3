"""Exact order statistics of what is computed of several tensors: thresholds that keep a share of their elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from brainsurgery_jax._lazy import Array, np
from brainsurgery_jax.dtypes import FLOAT64, Aval, to_numpy
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.merging.tensors import Params, anywhere, namespace
from brainsurgery_jax.numerics.math import wide
from brainsurgery_jax.numerics.order_search import Derive, OrderSearch, Places
from brainsurgery_jax.op import Avals, Passes, kernel


def order_statistics(
    name: str,
    derive: Derive,
    places: Places,
    shape: Callable[[Params], tuple[int, int]],
    by_nonzero: bool = False,
) -> Kernel[Any, Array]:
    """A kernel that gives the elements at some places of the sorted order, of one or several derived tensors: a float64
    vector, those of the first tensor before those of the second; infinity for a place behind the last.

    `shape(static)`: how many tensors are derived, and how many places each has. The operands go by in blocks: once for
    a sample, once to count what is below the windows that this gives; again where that was not enough. `by_nonzero`:
    places depend on how many elements are not zero.
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
            last = xp.minimum(wanted, x.size - 1).astype(np.int64 if x.size >= 1 << 31 else np.int32)
            there = xp.where(wanted < x.size, xp.take(xp.sort(x), last).astype(np.float64), np.inf)
            found.append(xp.where(xp.isnan(x).any(), np.nan, there))
        return xp.concatenate(found)

    def passes(avals: Avals, params: Params) -> Passes:
        dtype = to_numpy(wide(avals[0].dtype))
        return OrderSearch(derive, places, shape(params), avals[0].size, dtype, params, by_nonzero).passes()

    return kernel(name, result=result, host=anywhere, fold=passes)(of_whole)
