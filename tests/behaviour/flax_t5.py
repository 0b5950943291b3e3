"""T5 as a small Flax module, whose parameters lie as `flax-t5` lays them out."""

from __future__ import annotations

from math import log
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

FAR = 128
"""Distance from which on all are alike."""


def bucket(distance: Array, buckets: int, *, both_ways: bool) -> Array:
    """The number of the bias for a key so far behind a query: near distances one each, farther ones by logarithm."""
    if both_ways:
        buckets //= 2
    side = jnp.where(distance > 0, buckets, 0) if both_ways else 0
    away = jnp.abs(distance) if both_ways else jnp.maximum(-distance, 0)
    near = buckets // 2
    steps = jnp.log(jnp.maximum(away, 1) / near) / log(FAR / near) * (buckets - near)
    return side + jnp.where(away < near, away, jnp.minimum(near + steps.astype(int), buckets - 1))


class Attention(nn.Module):
    """Attention without a scale, with a bias by distance; the first layer of a stack holds the table."""

    config: Any
    biased: bool
    causal: bool

    @nn.compact
    def __call__(self, x: Array, memory: Array, bias: Array | None) -> tuple[Array, Array | None]:
        c = self.config
        q, k, v = (
            nn.Dense(c.num_heads * c.d_kv, use_bias=False, name=name)(y).reshape(*y.shape[:2], c.num_heads, c.d_kv)
            for name, y in (("q", x), ("k", memory), ("v", memory))
        )
        if self.biased:
            distance = jnp.arange(memory.shape[1])[None] - jnp.arange(x.shape[1])[:, None]
            table = nn.Embed(c.relative_attention_num_buckets, c.num_heads, name="relative_attention_bias")
            numbers = bucket(distance, c.relative_attention_num_buckets, both_ways=not self.causal)
            bias = table(numbers).transpose(2, 0, 1)[None]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) + (0 if bias is None else bias)
        if self.causal:
            scores = jnp.where(nn.make_causal_mask(x[..., 0]), scores, -1e9)
        said = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
        return nn.Dense(x.shape[-1], use_bias=False, name="o")(said.reshape(*x.shape[:2], -1)), bias


class Gated(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        gate, up = (nn.Dense(c.d_ff, use_bias=False, name=name)(x) for name in ("wi_0", "wi_1"))
        return nn.Dense(c.d_model, use_bias=False, name="wo")(nn.gelu(gate, approximate=True) * up)


class Sublayer(nn.Module):
    """A norm, a part of that name, and what came in added."""

    config: Any
    part: str
    first: bool = False
    causal: bool = False

    @nn.compact
    def __call__(self, x: Array, memory: Array | None, bias: Array | None) -> tuple[Array, Array | None]:
        normed = nn.RMSNorm(self.config.layer_norm_epsilon, name="layer_norm")(x)
        if self.part == "DenseReluDense":
            return x + Gated(self.config, name=self.part)(normed), bias
        of = normed if memory is None else memory
        said, bias = Attention(self.config, self.first, self.causal, name=self.part)(normed, of, bias)
        return x + said, bias


class Sublayers(nn.Module):
    config: Any
    first: bool
    decodes: bool

    @nn.compact
    def __call__(self, x: Array, memory: Array | None, bias: Array | None) -> tuple[Array, Array | None]:
        x, bias = Sublayer(self.config, "SelfAttention", self.first, self.decodes, name="0")(x, None, bias)
        if self.decodes:
            x, _ = Sublayer(self.config, "EncDecAttention", name="1")(x, memory, None)
        return Sublayer(self.config, "DenseReluDense", name="2" if self.decodes else "1")(x, None, bias)


class Block(nn.Module):
    config: Any
    first: bool
    decodes: bool

    @nn.compact
    def __call__(self, x: Array, memory: Array | None, bias: Array | None) -> tuple[Array, Array | None]:
        return Sublayers(self.config, self.first, self.decodes, name="layer")(x, memory, bias)


class Blocks(nn.Module):
    config: Any
    count: int
    decodes: bool

    @nn.compact
    def __call__(self, x: Array, memory: Array | None) -> Array:
        bias = None
        for i in range(self.count):
            x, bias = Block(self.config, i == 0, self.decodes, name=str(i))(x, memory, bias)
        return x


class Stack(nn.Module):
    config: Any
    count: int
    decodes: bool

    @nn.compact
    def __call__(self, x: Array, memory: Array | None = None) -> Array:
        x = Blocks(self.config, self.count, self.decodes, name="block")(x, memory)
        return nn.RMSNorm(self.config.layer_norm_epsilon, name="final_layer_norm")(x)


class T5(nn.Module):
    """An encoder and a decoder that read the same tokens, with the head tied to the table of words."""

    config: Any

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        c = self.config
        shared = nn.Embed(c.vocab_size, c.d_model, name="shared")
        words = shared(tokens)
        memory = Stack(c, c.num_layers, decodes=False, name="encoder")(words)
        said = Stack(c, c.num_decoder_layers, decodes=True, name="decoder")(words, memory)
        return shared.attend(said * c.d_model**-0.5 if c.scale_decoder_outputs else said)
