"""The architecture of big_vision as modules of Flax: names that no module gives are those that Flax makes, as there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array


class MlpBlock(nn.Module):
    inner: int
    exact: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.gelu(nn.Dense(self.inner)(x), approximate=not self.exact)
        return nn.Dense(x.shape[-1])(y)


class EncoderBlock(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        y = nn.LayerNorm(epsilon=c.layer_norm_eps)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=c.num_attention_heads)(y, y)
        y = nn.LayerNorm(epsilon=c.layer_norm_eps)(x)
        return x + MlpBlock(c.intermediate_size, c.hidden_act == "gelu")(y)


class Encoder(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.config.num_hidden_layers):
            x = EncoderBlock(self.config, name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(epsilon=self.config.layer_norm_eps, name="encoder_norm")(x)


class MAPHead(nn.Module):
    """One token made of all: attention from a learned probe."""

    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        probe = self.param("probe", nn.initializers.zeros, (1, 1, x.shape[-1]))
        x = nn.MultiHeadDotProductAttention(num_heads=c.num_attention_heads)(jnp.tile(probe, (len(x), 1, 1)), x)
        y = nn.LayerNorm(epsilon=c.layer_norm_eps)(x)
        return (x + MlpBlock(c.intermediate_size, c.hidden_act == "gelu")(y))[:, 0]


class Vit(nn.Module):
    """An image encoder: with a class token and a head for classes, or with a probe."""

    config: Any
    classes: int = 0

    @nn.compact
    def __call__(self, images: Array) -> Array:
        c = self.config
        patch = (c.patch_size, c.patch_size)
        x = nn.Conv(c.hidden_size, patch, patch, padding="VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, c.hidden_size)
        if self.classes:
            first = self.param("cls", nn.initializers.zeros, (1, 1, c.hidden_size))
            x = jnp.concatenate([jnp.tile(first, (len(x), 1, 1)), x], 1)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape[1:]))
        x = Encoder(c, name="Transformer")(x)
        return nn.Dense(self.classes, name="head")(x[:, 0]) if self.classes else MAPHead(c)(x)


class TextEncoder(nn.Module):
    """A text encoder that answers with its last token."""

    config: Any

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        c = self.config
        x = nn.Embed(c.vocab_size, c.hidden_size)(tokens)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape[1:]))
        return nn.Dense(c.projection_size, name="head")(Encoder(c)(x)[:, -1])


class TwoTowers(nn.Module):
    """SigLIP: how well each image goes with each text."""

    config: Any

    @nn.compact
    def __call__(self, images: Array, tokens: Array) -> Array:
        image = Vit(self.config.vision_config, name="img")(images)
        text = TextEncoder(self.config.text_config, name="txt")(tokens)
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        scale, bias = (self.param(name, nn.initializers.zeros, (1,)) for name in ("t", "b"))
        return image @ text.T * jnp.exp(scale) + bias
