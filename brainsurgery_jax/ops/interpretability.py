"""Ops that give models the forms in which people study them: the model computes what it did, or a known shift of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StrictBool

from brainsurgery_jax.keys import Text, Word
from brainsurgery_jax.op import control
from brainsurgery_jax.ops._models import ModelKeys, ProvenKeys
from brainsurgery_jax.protocol import Edit, View


@control(configures=True)
def fold_norm(view: View, *, final: StrictBool = True, prove: StrictBool = False, model: ModelKeys) -> Iterator[Edit]:
    """Move the gain of every norm into the matrices that read its result; the model computes what it did.

    For decoders whose norms come before attention and MLP. The norms keep a gain of one (Gemma: a weight of zero), so
    that the same class of transformers loads the result. A bias of LayerNorm moves into that of the matrix; the last
    norm of GPT-2 keeps its own, divided by its gain, since the head has none. The last norm goes into the output table,
    which must not be tied; `final: false` leaves this norm as it is. Norms of queries and keys, and those after a
    layer, stay. `prove: true` asserts that no logit of 32 tokens changes by more than 1e-3.
    Example: `fold_norm: {prove: true}`
    Reference: Nanda and Bloom, TransformerLens (2022), https://github.com/TransformerLensOrg/TransformerLens.
    """
    from brainsurgery_jax.structure.folding import fold_norms

    yield from fold_norms(view, model.asked, final=final, prove=prove)


@control(configures=True)
def centre_writing(view: View, *, prove: StrictBool = False, model: ModelKeys) -> Iterator[Edit]:
    """Subtract the mean over the residual stream from all that writes to it: W - mean(W) for embeddings, and for the
    matrices and biases that attention and MLP end with.

    LayerNorm subtracts the mean of what it reads, and all is read through it, so the logits stay what they were: of
    GPT-2, GPT-NeoX and OLMo 1, where words are not tied. Models with RMSNorm are refused. `prove: true` asserts that no
    logit of 32 tokens changes by more than 1e-3.
    Example: `centre_writing: {prove: true}`
    Reference: Nanda and Bloom, TransformerLens (2022), https://github.com/TransformerLensOrg/TransformerLens.
    """
    from brainsurgery_jax.structure.centring import centre_writing

    yield from centre_writing(view, model.asked, prove=prove)


@control(configures=True)
def centre_unembed(view: View, *, prove: StrictBool = False, model: ModelKeys) -> Iterator[Edit]:
    """Subtract the mean over all words from the output table, and from its bias if there is one.

    All logits of a token shift by the same amount, which the softmax does not see: the probabilities stay what they
    were, and logits sum to zero. Where words are tied, or logits are capped softly (Gemma 2), it is refused. `prove:
    true` asserts that the KL divergence over 32 tokens is at most 1e-5 nats a token.
    Example: `centre_unembed: {prove: true}`
    Reference: Nanda and Bloom, TransformerLens (2022), https://github.com/TransformerLensOrg/TransformerLens.
    """
    from brainsurgery_jax.structure.centring import centre_unembed

    yield from centre_unembed(view, model.asked, prove=prove)


@control(configures=True)
def fold_value_biases(view: View, *, prove: StrictBool = False, model: ModelKeys) -> Iterator[Edit]:
    """Move the bias of values through the matrix behind attention, into its bias: b + W v, and v becomes zero.

    The weights that attention gives to tokens sum to 1, so every token gets the whole bias of values, and the logits
    stay what they were. For GPT-2, GPT-NeoX and the Llama family, where both biases exist (`attention_bias: true`);
    Qwen 2 has none for the matrix and is refused, as are models that clip values. `prove: true` asserts that no logit
    of 32 tokens changes by more than 1e-3.
    Example: `fold_value_biases: {prove: true}`
    Reference: Nanda and Bloom, TransformerLens (2022), https://github.com/TransformerLensOrg/TransformerLens.
    """
    from brainsurgery_jax.structure.centring import fold_value_biases

    yield from fold_value_biases(view, model.asked, prove=prove)


@control(configures=True)
def refactor_attention(
    view: View,
    *,
    products: Annotated[
        Literal["both", "qk", "ov"], Word, Field(description="queries with keys, values with what follows, or both")
    ] = "both",
    model: ProvenKeys,
) -> Iterator[Edit]:
    """Give queries and keys, and values and the matrix behind attention, the basis of the singular vectors of their
    product: in each head dimensions are orthogonal, and the first counts most. All products stay, so do the logits.

    W_Q W_K^T = U S V^T becomes U sqrt(S) and V sqrt(S), W_V W_O becomes U S and V^T; biases are one more row of W_Q,
    W_K and W_V. Heads that share values are one product together. Rotary embeddings turn queries and keys between the
    two matrices: there `products: ov` alone is possible (all but GPT-2). The singular value decomposition is that of a
    matrix as small as a head. `prove: true` asserts that no logit of 32 tokens changes by more than 1e-3.
    Where singular values of a product are zero or equal, single vectors have no derivative: gradients are NaN there.
    Example: `refactor_attention: {products: ov, prove: true}`
    Reference: Nanda and Bloom, TransformerLens (2022), https://github.com/TransformerLensOrg/TransformerLens.
    """
    from brainsurgery_jax.structure.attention import refactor_attention

    yield from refactor_attention(view, model.asked, products, prove=model.prove)


@control(configures=True)
def standard_names(
    view: View,
    *,
    like: Annotated[Text, Field(description="go back: the alias of the model as it was before")] | None = None,
    model: ModelKeys,
) -> Iterator[Edit]:
    """Give the tensors of a decoder the names that are the same for every family: `embed_tokens`, `layers.N.self_attn`,
    `layers.N.mlp`, `ln_final`, `lm_head`. No tensor is read; what has no such name only loses its prefix.

    A model whose words are tied gets a head of its own. For the families of Llama, GPT-2 and GPT-NeoX. Classes of
    `transformers` do not load the result: it is for tools that treat all models alike.

    `like: original` is the way back: the tensors get the names that those of that alias have, a model as it was before.
    A head that it lacks, since its words are tied, must still be equal to the table, and is removed.
    Example: `standard_names: {alias: model}`
    Reference: Dumas, nnterp (2025), https://arxiv.org/abs/2511.14465.
    """
    from brainsurgery_jax.structure.standard_names import rename_from_standard, rename_to_standard

    if like is None:
        yield from rename_to_standard(view, model.asked)
    else:
        yield from rename_from_standard(view, model.asked, like)


@control(configures=True)
def fold_lens(
    view: View,
    *,
    lens: Annotated[Text, Field(description="the alias with `0.weight`, `0.bias` ...: the translator of each layer")],
    model: ModelKeys,
) -> Iterator[Edit]:
    """Fold a tuned lens and the readout of a model into matrices around one normalization without weights.

    The lens reads the words that layer i expects as head(norm(x + A x + b)). Afterwards its alias holds T = `i.weight`
    and t = `i.bias`, and once for all layers W = `readout.weight` and c = `readout.bias` (if there is one), so that the
    same logits are W y / sqrt(mean(y^2) + eps) + c with y = T x + t: the gain and the bias of the last norm are in W
    and c, and the mean that LayerNorm subtracts is out of T and t. A soft cap (Gemma 2) comes after that. `eps` is that
    of the config.
    Example: `fold_lens: {lens: lens, alias: model}`
    Reference: Belrose et al., Eliciting Latent Predictions from Transformers with the Tuned Lens (2023),
    https://arxiv.org/abs/2303.08112.
    """
    from brainsurgery_jax.structure.lens import fold_lens

    yield from fold_lens(view, model.asked, lens)
