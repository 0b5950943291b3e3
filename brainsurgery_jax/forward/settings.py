"""The settings of a decoder: of each layer, of its tables and of its head. No arrays."""

from __future__ import annotations

from typing import Literal, NamedTuple

from brainsurgery_jax.forward.rotary import Rotary

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


class Norm(NamedTuple):
    """A normalization over the last axis, by the root of the mean square. `centred`: the mean is subtracted before.
    `offset` is added to its weight (Gemma stores the weight less 1)."""

    eps: float
    offset: float = 0.0
    centred: bool = False


class Latent(NamedTuple):
    """Queries, keys and values from vectors of low rank (arXiv 2405.04434): the ranks (of queries 0: they have a matrix
    of their own), and the widths of a head: what is not rotated, what is, and values. `norm` is that of the vectors."""

    query_rank: int
    rank: int
    plain: int
    rotated: int
    value: int
    norm: Norm


class Attention(NamedTuple):
    """Self-attention. `window`: how many positions a token sees, itself included (0: all before it). `cap`, `clip`: the
    soft cap of scores, the largest magnitude of queries, keys and values (0: none). `interleaved`: fused queries, keys
    and values stand head by head, else all queries come first."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary
    scale: float
    window: int = 0
    cap: float = 0.0
    clip: float = 0.0
    interleaved: bool = False
    latent: Latent | None = None


class Router(NamedTuple):
    """How experts are chosen: so many with the largest probability; `renormalize`: theirs then sum to 1, times `scale`.
    `sigmoid`: each has a probability of its own, and a correction that counts when they are chosen. Of `groups`, one
    after another, only those `taken` with the best two experts are open to a token."""

    chosen: int
    renormalize: bool
    sigmoid: bool = False
    groups: int = 1
    taken: int = 1
    scale: float = 1.0


class Clamped(NamedTuple):
    """The experts of GPT-OSS: matrices [in, out], gate and up in turn, clamped to `limit`, gated by
    g sigmoid(`alpha` g) (up + 1)."""

    alpha: float
    limit: float


class Layer(NamedTuple):
    """The settings of one layer. `parallel`: attention and MLP read the same residual. `residual`: what both are
    multiplied by before they are added. `transposed`: matrices are stored [in, out]."""

    norm: Norm
    attention: Attention
    activation: Activation
    router: Router | None = None
    parallel: bool = False
    residual: float = 1.0
    transposed: bool = False
    bare_norms: bool = False
    clamped: Clamped | None = None


class Decoder(NamedTuple):
    """A decoder: `family` names the table of its weights; `norm` is the last one. Embeddings are multiplied by
    `embedding`, logits by `logits`, then capped softly by `cap` (0: not). `further`: so many layers after the last
    predict further tokens, and are not computed."""

    family: str
    layers: tuple[Layer, ...]
    vocabulary: int
    tied: bool
    norm: Norm
    embedding: float = 1.0
    logits: float = 1.0
    cap: float = 0.0
    further: int = 0
