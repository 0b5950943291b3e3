"""Tensors of different shapes: the corner that all of them have, merged by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.index.moves import Slice
from brainsurgery_jax.op import kernel
from brainsurgery_jax.ops.shape import place, with_shape
from brainsurgery_jax.protocol import TensorExpr, View
from brainsurgery_jax.select import Index

Shape = tuple[int, ...]


@kernel("slice", moves=lambda avals, params: Slice(params["index"]))
def corner_of(x: Array, *, index: Index) -> Array:
    """The first entries along each axis."""
    return x[index.key]


def common_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape of the corner that tensors of as many axes have in common."""
    return tuple(map(min, zip(*shapes, strict=True)))


class Corner(NamedTuple):
    """The part of tensors that is merged, as at least a vector. `around`: what it is put back into."""

    view: View
    shape: Shape
    around: TensorExpr | None = None

    def cut(self, e: TensorExpr) -> TensorExpr:
        """The corner of a tensor."""
        if e.aval.shape != self.shape:
            e = self.view.apply(corner_of, e, index=self._index(e.aval.shape))
        return e if self.shape else self.view.apply(with_shape, e, shape=(1,))

    def restore(self, merged: TensorExpr) -> TensorExpr:
        """What the merged corner makes of the base, or itself."""
        if not self.shape:
            merged = self.view.apply(with_shape, merged, shape=())
        if self.around is None or self.around.aval.shape == self.shape:
            return merged
        return self.view.apply(place, self.around, merged, index=self._index(self.around.aval.shape))

    def _index(self, whole: Shape) -> Index:
        return Index((0,) * len(whole), self.shape, (1,) * len(whole), (), whole)
