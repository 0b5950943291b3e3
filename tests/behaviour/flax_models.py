"""GPT-2 and BERT as small Flax modules, whose parameters lie as `flax-gpt2` and `flax-bert` lay them out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


def attended(q: Array, k: Array, v: Array, heads: int, mask: Array | None) -> Array:
    """Scaled dot-product attention of [batch, length, width] by that many heads."""
    split = [x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v)]
    return nn.dot_product_attention(*split, mask=mask).reshape(q.shape)


class Numbered(nn.Module):
    """A list of blocks named 0, 1, ..."""

    block: type[nn.Module]
    sizes: dict[str, int]
    layers: int

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        for i in range(self.layers):
            x = self.block(**self.sizes, name=str(i))(x, mask)
        return x


class Gpt2Attention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        q, k, v = jnp.split(nn.Dense(3 * x.shape[-1], name="c_attn")(x), 3, -1)
        return nn.Dense(x.shape[-1], name="c_proj")(attended(q, k, v, self.heads, mask))


class Gpt2Mlp(nn.Module):
    inner: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(x.shape[-1], name="c_proj")(nn.gelu(nn.Dense(self.inner, name="c_fc")(x), approximate=True))


class Gpt2Block(nn.Module):
    heads: int
    inner: int

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        x = x + Gpt2Attention(self.heads, name="attn")(nn.LayerNorm(epsilon=1e-5, name="ln_1")(x), mask)
        return x + Gpt2Mlp(self.inner, name="mlp")(nn.LayerNorm(epsilon=1e-5, name="ln_2")(x))


class Gpt2(nn.Module):
    """GPT-2 with the head tied to the table of words."""

    config: Any

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        c = self.config
        wte = nn.Embed(c.vocab_size, c.n_embd, name="wte")
        x = wte(tokens) + nn.Embed(c.n_positions, c.n_embd, name="wpe")(jnp.arange(tokens.shape[1]))
        sizes = {"heads": c.n_head, "inner": c.n_inner or 4 * c.n_embd}
        x = Numbered(Gpt2Block, sizes, c.n_layer, name="h")(x, nn.make_causal_mask(tokens))
        return wte.attend(nn.LayerNorm(epsilon=1e-5, name="ln_f")(x))


class BertOutput(nn.Module):
    """A projection back to the width, added to what it came from, and normed."""

    @nn.compact
    def __call__(self, x: Array, residual: Array) -> Array:
        x = nn.Dense(residual.shape[-1], name="dense")(x)
        return nn.LayerNorm(epsilon=1e-12, name="LayerNorm")(x + residual)


class BertSelf(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        q, k, v = (nn.Dense(x.shape[-1], name=name)(x) for name in ("query", "key", "value"))
        return attended(q, k, v, self.heads, mask)


class BertAttention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        return BertOutput(name="output")(BertSelf(self.heads, name="self")(x, mask), x)


class BertIntermediate(nn.Module):
    inner: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.gelu(nn.Dense(self.inner, name="dense")(x), approximate=False)


class BertLayer(nn.Module):
    heads: int
    inner: int

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        x = BertAttention(self.heads, name="attention")(x, mask)
        return BertOutput(name="output")(BertIntermediate(self.inner, name="intermediate")(x), x)


class BertEncoder(nn.Module):
    sizes: dict[str, int]
    layers: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Numbered(BertLayer, self.sizes, self.layers, name="layer")(x)


class BertEmbeddings(nn.Module):
    config: Any

    def setup(self) -> None:
        c = self.config
        self.word_embeddings = nn.Embed(c.vocab_size, c.hidden_size)
        self.position_embeddings = nn.Embed(c.max_position_embeddings, c.hidden_size)
        self.token_type_embeddings = nn.Embed(c.type_vocab_size, c.hidden_size)
        self.LayerNorm = nn.LayerNorm(epsilon=1e-12)

    def __call__(self, tokens: Array) -> Array:
        kinds = self.token_type_embeddings(jnp.zeros_like(tokens))
        return self.LayerNorm(
            self.word_embeddings(tokens) + self.position_embeddings(jnp.arange(tokens.shape[1])) + kinds
        )

    def words(self, x: Array) -> Array:
        """How near each word is to each row."""
        return self.word_embeddings.attend(x)


class BertTransform(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.gelu(nn.Dense(x.shape[-1], name="dense")(x), approximate=False)
        return nn.LayerNorm(epsilon=1e-12, name="LayerNorm")(x)


class BertPredictions(nn.Module):
    words: int

    def setup(self) -> None:
        self.transform = BertTransform()
        self.bias = self.param("bias", nn.initializers.zeros, (self.words,))


class BertHeads(nn.Module):
    words: int

    def setup(self) -> None:
        self.predictions = BertPredictions(self.words)


class Bert(nn.Module):
    """BERT with the head of a masked language model, tied to the table of words."""

    config: Any

    def setup(self) -> None:
        c = self.config
        sizes = {"heads": c.num_attention_heads, "inner": c.intermediate_size}
        self.embeddings = BertEmbeddings(c)
        self.encoder = BertEncoder(sizes, c.num_hidden_layers)
        self.cls = BertHeads(c.vocab_size)

    def __call__(self, tokens: Array) -> Array:
        x = self.encoder(self.embeddings(tokens))
        head = self.cls.predictions
        return self.embeddings.words(head.transform(x)) + head.bias
