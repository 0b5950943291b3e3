"""The two structural kernels that the plan language itself needs: reading and writing a part of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainsurgery_jax._lazy import Array, Num
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.index.moves import Slice, Update
from brainsurgery_jax.op import kernel
from brainsurgery_jax.select import Index


def _everything(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> bool:
    index: Index = params["index"]
    return index.full


@kernel("slice", moves=lambda avals, params: Slice(params["index"]), noop=_everything)
def take(x: Num[Array, "..."], *, index: Index) -> Array:
    """`x[index]`."""
    return x[index.key]


@kernel("update", moves=lambda avals, params: Update(params["index"]))
def put(x: Num[Array, "..."], value: Num[Array, "..."], *, index: Index) -> Array:
    """`x` with `value` at `index`."""
    return x.at[index.key].set(value)
