"""The two structural kernels that the plan language itself needs: reading and writing a part of a tensor."""

from __future__ import annotations

from typing import TypedDict

from brainsurgery_jax._lazy import Array, Num, jax
from brainsurgery_jax.index.moves import Slice, Update
from brainsurgery_jax.op import Avals, kernel
from brainsurgery_jax.select import Index


class IndexParams(TypedDict):
    """The part of a tensor that is read or written."""

    index: Index


def _slice(avals: Avals, params: IndexParams) -> Slice:
    return Slice(params["index"])


def _update(avals: Avals, params: IndexParams) -> Update:
    return Update(params["index"])


def _everything(avals: Avals, params: IndexParams) -> bool:
    return params["index"].full


@kernel("slice", moves=_slice, noop=_everything)
def take(x: Num[Array, "..."], *, index: Index) -> Array:
    """`x[index]`."""
    return x[index.key]


@kernel("update", moves=_update)
def put(x: Num[jax.Array, "..."], value: Num[Array, "..."], *, index: Index) -> Array:
    """`x` with `value` at `index`."""
    return x.at[index.key].set(value)
