"""GPT-2 as a plain Flax NNX module, as anybody would write one: no collection `params`, blocks in a list."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class Attention(nnx.Module):
    """Causal self-attention with queries, keys and values side by side."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.c_attn = nnx.Linear(width, 3 * width, rngs=rngs)
        self.c_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        q, k, v = (y.reshape(*x.shape[:2], self.heads, -1) for y in jnp.split(self.c_attn(x), 3, -1))
        return self.c_proj(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))


class Mlp(nnx.Module):
    """Two layers with a GELU between them."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.c_fc = nnx.Linear(width, 4 * width, rngs=rngs)
        self.c_proj = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.c_proj(nnx.gelu(self.c_fc(x), approximate=True))


class Block(nnx.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.ln_1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attn = Attention(width, heads, rngs)
        self.ln_2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.mlp = Mlp(width, rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt2(nnx.Module):
    """GPT-2 with the head tied to the table of words."""

    def __init__(self, config: Any, rngs: nnx.Rngs):
        width = config.n_embd
        self.wte = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.wpe = nnx.Embed(config.n_positions, width, rngs=rngs)
        self.h = nnx.List([Block(width, config.n_head, rngs) for _ in range(config.n_layer)])
        self.ln_f = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))
