"""What is factorized: the changes of weights, as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from brainsurgery_jax.adapters.architecture import Architecture
from brainsurgery_jax.adapters.stacked import is_stack, is_transposed
from brainsurgery_jax.merging.tensors import common_work, in_dtype
from brainsurgery_jax.ops._stacked import split_matrices
from brainsurgery_jax.ops.elementwise import subtract
from brainsurgery_jax.ops.shape import transpose, with_shape
from brainsurgery_jax.protocol import TensorExpr, View


class ModelPair(NamedTuple):
    """A tensor in both models."""

    name: str
    base: TensorExpr
    tuned: TensorExpr

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def parameter(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def is_alike(self) -> bool:
        """Whether shapes agree."""
        return self.base.aval.shape == self.tuned.aval.shape


class WeightChange(NamedTuple):
    """What is factorized: the change of a weight as PEFT multiplies factors [out, in], for a table [width, words], for
    a convolution [out, in * kernel]; of stacked experts a matrix each."""

    pair: ModelPair
    deltas: Sequence[TensorExpr]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of each matrix."""
        return self.deltas[0].aval.shape

    @property
    def is_stacked(self) -> bool:
        return len(self.deltas) > 1

    @property
    def full(self) -> int:
        """The largest rank that there can be."""
        return min(self.shape)

    @property
    def cost(self) -> int:
        """The parameters that a rank takes: all experts have the same."""
        return len(self.deltas) * sum(self.shape)

    @property
    def size(self) -> int:
        """The parameters of the weight."""
        return len(self.deltas) * prod(self.shape)

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of `lora_A` and `lora_B`: those of a convolution have its kernel, and one of a single entry."""
        out, ins = self.shape
        whole = self.pair.tuned.aval.shape
        if len(whole) == 2 or self.is_stacked:
            return (rank * len(self.deltas), ins), (out, rank * len(self.deltas))
        return (rank, *whole[1:]), (out, rank, *(1 for _ in whole[2:]))


def change_of(view: View, pair: ModelPair, model: Architecture) -> WeightChange:
    """The change of a tensor that is factorized."""
    if is_stack(model.config, pair.name, pair.tuned.aval.shape):
        tuned, base = (split_matrices(view, pair.name, x) for x in (pair.tuned, pair.base))
        matrices = [_difference(view, x, y) for x, y in zip(tuned, base, strict=True)]
        return WeightChange(pair, [_turn(view, x) for x in matrices] if is_transposed(model.config) else matrices)
    delta = _difference(view, pair.tuned, pair.base)
    if len(delta.aval.shape) > 2:
        out, *inputs = delta.aval.shape
        delta = view.apply(with_shape, delta, shape=(out, prod(inputs)))
    elif model.is_table(pair.module) or model.is_transposed(pair.module):
        delta = _turn(view, delta)
    return WeightChange(pair, [delta])


def _difference(view: View, tuned: TensorExpr, base: TensorExpr) -> TensorExpr:
    work = common_work([base.aval.dtype, tuned.aval.dtype])
    return view.apply(subtract, *(view.apply(in_dtype, x, dtype=work) for x in (tuned, base)))


def _turn(view: View, x: TensorExpr) -> TensorExpr:
    return view.apply(transpose, x, axes=(0, 1))
