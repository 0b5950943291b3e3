"""Random numbers of a merge: they depend on the seed, the tensor's name, the layer if it holds all, and the
model's alias: models keep their choices in another order and beside others."""

from __future__ import annotations

from brainsurgery_jax._lazy import Array, jax, jnp
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.merging.method import Merging, ModelTensor
from brainsurgery_jax.numerics.math import fold_seed, key_of_block
from brainsurgery_jax.op import Number, kernel
from brainsurgery_jax.protocol import TensorExpr


@kernel(blocks=True, result=lambda avals, params: (Aval(params["shape"], FLOAT32),))
def uniform(*, shape: tuple[int, ...], key_high: Number, key_low: Number, block: Number, size: int) -> Array:
    """Block number `block` (of `size` elements) of a tensor of numbers from 0 up to, but without, 1."""
    return jax.random.uniform(key_of_block(key_high, key_low, block), (size,), jnp.float32)


def draw(merging: Merging, model: ModelTensor) -> TensorExpr:
    """A random number for each element of a model's tensor."""
    layer = "" if merging.layer is None else f"[{merging.layer[1]}]"
    seed = fold_seed(merging.view.seed, f"{model.alias}::{merging.name}{layer}")
    high, low = float(seed >> 32), float(seed & 0xFFFFFFFF)
    return merging.view.apply(uniform, shape=merging.aval.shape, key_high=high, key_low=low)
