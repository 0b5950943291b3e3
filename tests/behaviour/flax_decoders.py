"""OLMo 2, OLMoE and Mixtral as small Flax modules, whose parameters lie as the layouts `flax-...` lay them out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class Choices:
    """What tells the three apart."""

    def __init__(self, config: Any):
        self.kind = config.model_type
        self.experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0
        self.normed_heads = self.kind != "mixtral"
        self.norms_after = self.kind == "olmo2"
        self.shares_sum_to_one = self.kind == "mixtral"
        self.names = ("w1", "w3", "w2") if self.kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")


def head_width(config: Any) -> int:
    """The width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def turned(x: Array, theta: float) -> Array:
    """Heads [batch, length, heads, width] with rotary embeddings: the two halves of a head turn."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, made = self.config, {}
        heads = {"q": c.num_attention_heads, "k": c.num_key_value_heads, "v": c.num_key_value_heads}
        for name, count in heads.items():
            y = nn.Dense(count * head_width(c), use_bias=False, name=f"{name}_proj")(x)
            if Choices(c).normed_heads and name != "v":
                y = nn.RMSNorm(c.rms_norm_eps, name=f"{name}_norm")(y)
            y = y.reshape(*x.shape[:2], count, head_width(c))
            made[name] = y if name == "v" else turned(y, c.rope_parameters["rope_theta"])
        times = heads["q"] // heads["k"]
        k, v = (jnp.repeat(made[name], times, axis=2) for name in ("k", "v"))
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.dot_product_attention(made["q"], k, v, mask=mask)
        return nn.Dense(x.shape[-1], use_bias=False, name="o_proj")(y.reshape(*x.shape[:2], -1))


class Mlp(nn.Module):
    inner: int
    names: tuple[str, str, str]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate, up, down = self.names
        y = nn.silu(nn.Dense(self.inner, use_bias=False, name=gate)(x))
        return nn.Dense(x.shape[-1], use_bias=False, name=down)(y * nn.Dense(self.inner, use_bias=False, name=up)(x))


class Experts(nn.Module):
    """Every expert says what it would; the router's choice counts."""

    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, choices = self.config, Choices(self.config)
        shares = jax.nn.softmax(nn.Dense(choices.experts, use_bias=False, name="gate")(x))
        best, which = jax.lax.top_k(shares, c.num_experts_per_tok)
        if choices.shares_sum_to_one:
            best = best / best.sum(-1, keepdims=True)
        weight = (jax.nn.one_hot(which, choices.experts) * best[..., None]).sum(-2)
        each = nn.vmap(Mlp, variable_axes={"params": 0}, split_rngs={"params": True})
        copies = jnp.broadcast_to(x, (choices.experts, *x.shape))
        said = each(c.intermediate_size, choices.names, name="experts")(copies)
        return jnp.einsum("ebld,ble->bld", said, weight)


class Layer(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, choices = self.config, Choices(self.config)
        mlp = "block_sparse_moe" if choices.kind == "mixtral" else "mlp"
        feed = Experts(c, name=mlp) if choices.experts else Mlp(c.intermediate_size, choices.names, name=mlp)
        attend = Attention(c, name="self_attn")
        first = "post_attention_layernorm" if choices.norms_after else "input_layernorm"
        second = "post_feedforward_layernorm" if choices.norms_after else "post_attention_layernorm"
        for part, name in ((attend, first), (feed, second)):
            norm = nn.RMSNorm(c.rms_norm_eps, name=name)
            x = x + (norm(part(x)) if choices.norms_after else part(norm(x)))
        return x


class Layers(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.config.num_hidden_layers):
            x = Layer(self.config, name=str(i))(x)
        return x


class Decoder(nn.Module):
    """The decoder that a configuration of `transformers` describes, with a head of its own."""

    config: Any

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        c = self.config
        x = Layers(c, name="layers")(nn.Embed(c.vocab_size, c.hidden_size, name="embed_tokens")(tokens))
        return nn.Dense(c.vocab_size, use_bias=False, name="lm_head")(nn.RMSNorm(c.rms_norm_eps, name="norm")(x))
