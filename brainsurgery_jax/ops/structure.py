"""Ops on the structure of models whose family is known: they change tensors and config together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, StrictBool, StrictInt, WithJsonSchema

from brainsurgery_jax.keys import KeyGroup, Text, Word
from brainsurgery_jax.op import Real, control
from brainsurgery_jax.ops._chosen import FORM, SCHEMA, UnitChoice, choose, choose_by_layer, read_chosen
from brainsurgery_jax.protocol import Edit, View


def read_layers(value: object) -> object:
    """Some layers: a list of numbers and ranges, or a choice by data."""
    if isinstance(value, Mapping):
        return read_chosen(value)
    if not isinstance(value, list | tuple) or not value or not all(type(n) in (int, str) for n in value):
        raise ValueError(f"expected a list of numbers and of ranges such as '4:8', or {FORM}; got {value!r}")
    return tuple(value)


_NUMBERS = {"type": "array", "items": {"type": "integer"}}
_RANGES = {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1}
Layers = Annotated[
    object,
    AfterValidator(read_layers),
    WithJsonSchema({"anyOf": [_RANGES, SCHEMA]}),
    Field(description="numbers, and ranges as Python slices them: [0, '4:8', '-2:']; or a choice by data"),
]

Count = Annotated[StrictInt, Field(gt=0)]


@dataclass(frozen=True)
class ModelKeys(KeyGroup):
    """Which model is meant."""

    alias: Annotated[Text, Field(description="the model, if there are several")] | None = None
    part: Annotated[Text, Field(description="of a model of several: the key of its part of config.json")] | None = None


@dataclass(frozen=True)
class ProvenKeys(ModelKeys):
    """Which model is meant, and whether it is to be shown that it computes what it did."""

    prove: Annotated[StrictBool, Field(description="assert that no logit of 32 tokens changes by more than 1e-3")] = (
        False
    )


@dataclass(frozen=True)
class LayerKeys(KeyGroup):
    """Which layers there are afterwards: one of the four."""

    keep: Layers | None = None
    drop: Layers | None = None
    repeat: Layers | None = None
    order: Layers | None = None


def read_units(value: object) -> object:
    """What is taken out: a list for all layers, a mapping of layers to lists, or an amount."""
    wanted = "expected a list of numbers, a mapping of layers to lists, how many, or a share below 1"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value <= 0 or (isinstance(value, float) and value >= 1):
            raise ValueError(f"{wanted}, got {value!r}")
        return value
    if isinstance(value, Mapping) and value.keys() & {"scores", "numbers"}:
        return read_chosen(value)
    lists = value if isinstance(value, Mapping) else {None: value}
    made: dict[int | None, tuple[int, ...]] = {}
    for layer, numbers in lists.items():
        if not isinstance(numbers, list | tuple) or not all(type(n) is int for n in numbers):
            raise ValueError(f"{wanted}, got {value!r}")
        if layer is not None and not str(layer).isdecimal():
            raise ValueError(f"{wanted}, got {layer!r} for a layer")
        made[None if layer is None else int(str(layer))] = tuple(numbers)
    if not made:
        raise ValueError(f"{wanted}, got {value!r}")
    return made


Taken = Annotated[
    object,
    AfterValidator(read_units),
    WithJsonSchema(
        {"anyOf": [_NUMBERS, {"type": "object", "additionalProperties": _NUMBERS}, {"type": "number"}, SCHEMA]}
    ),
    Field(
        description="numbers, for all layers or each; or how many (which share) of the least norm; or a choice by data"
    ),
]


@dataclass(frozen=True)
class UnitKeys(KeyGroup):
    """What is taken out of every layer: one of the three."""

    heads: Taken | None = None
    kv_groups: Taken | None = None
    neurons: Taken | None = None


@dataclass(frozen=True)
class WordKeys(KeyGroup):
    """Which words there are afterwards."""

    size: Count | None = None
    multiple_of: Count | None = None
    order: (
        Annotated[tuple[StrictInt, ...], Field(min_length=1, description="old numbers, in their new order")] | None
    ) = None
    tokenizer: Annotated[Text, Field(description="the alias beside whose checkpoint the new tokenizer lies")] | None = (
        None
    )


def _numbers(view: View, given: object, key: str) -> Any:
    """A list as it stands, or the numbers of a choice by data."""
    return choose(view, given, key, drops=key == "drop") if isinstance(given, UnitChoice) else given


@control(configures=True)
def layers(
    view: View,
    *,
    asked: LayerKeys,
    stack: Annotated[Text, Field(description="encoder or decoder, of a model with both")] | None = None,
    scale_copies: Real = 1.0,
    model: ProvenKeys,
) -> Iterator[Edit]:
    """Keep, drop, repeat or reorder the layers of a model, or take some from another one, and change its config.

    `keep` and `drop` leave the others in their order, `repeat` lets each of these follow itself, and `order` lists all
    layers of the result, those of other models as 'other::4:8'. `scale_copies: 0` multiplies what layers that come
    again add to the residual stream, so that they change nothing until they are trained (not after a norm: BERT).
    The config gets the number of layers, and what it lists for each. Depth upscaling is `order: ['0:24', '8:32']`.
    Data may choose: `{scores: TENSOR, smallest: 4}` by a vector with a score of each layer (or `largest`; `below` or
    `above` a score), `{numbers: TENSOR}` as a vector lists them. They are computed before the run goes on.
    `prove: true` asserts that no logit of 32 tokens changes by more than 1e-3, as with such copies, or where layers
    that go add nothing.
    Example: `layers: {drop: [3, 4, 5]}`
    Example: `layers: {drop: {scores: 'stats::influence', smallest: 4}}`
    Reference: depth upscaling is that of Kim et al., SOLAR 10.7B (2023), https://arxiv.org/abs/2312.15166; copies that
    add nothing are those of Wu et al., LLaMA Pro (2024), https://arxiv.org/abs/2401.02415.
    """
    from brainsurgery_jax.structure.layers import AskedLayers, change_layers  # some milliseconds, which few plans need

    given = {key: _numbers(view, getattr(asked, key), key) for key in ("keep", "drop", "repeat", "order")}
    how = AskedLayers(**given, scale_copies=scale_copies, prove=model.prove)
    yield from change_layers(view, model.alias, model.part, stack or "", how)


@control(configures=True)
def vocab(
    view: View,
    *,
    asked: WordKeys,
    rows: Annotated[
        Text, Field(description="what new rows hold: mean, zero, or an alias with tensors of these names")
    ] = "mean",
    model: ProvenKeys,
) -> Iterator[Edit]:
    """Give a model more or fewer words, or other words in their place: in every table of words, and in the config.

    `size` cuts the last rows off or adds some, `multiple_of` rounds it (or the number that there is) up, and `order`
    lists the old numbers of all words: a permutation, or a choice. `tokenizer` names an alias whose tokenizer the model
    gets: words that stand for the same text keep their rows, whatever their numbers and spelling, and the files of the
    tokenizer replace the old ones in what is written. New rows hold the mean of the old ones, zeros, or those of the
    tensors of the same names in another alias (with `tokenizer`: by the new numbers). `order` and `tokenizer` change
    the numbers of special words in config.json and generation_config.json; otherwise files stay as they are.
    The logits of the words that stay are what they were; `prove: true` asserts that, for 32 of these words.
    Example: `vocab: {multiple_of: 64, rows: zero}`
    """
    from brainsurgery_jax.structure.vocab import AskedWords, change_words

    words = AskedWords(asked.size, asked.multiple_of, asked.order, asked.tokenizer, rows)
    yield from change_words(view, model.alias, model.part, words, prove=model.prove)


@control(configures=True)
def tie(view: View, *, replace: StrictBool = False, model: ProvenKeys) -> Iterator[Edit]:
    """Let a model have one table for the words that come in and those that go out, and say so in its config.

    Both must be identical, so that the model computes what it did; with `replace: true` the one for words that go out
    is left out whatever it holds.
    Example: `tie: {alias: model}`
    """
    from brainsurgery_jax.structure.tying import tie

    yield from tie(view, model.alias, model.part, replace=replace, prove=model.prove)


@control(configures=True)
def untie(view: View, *, model: ProvenKeys) -> Iterator[Edit]:
    """Give a model a table of its own for the words that go out, a copy of the other one, and say so in its config.

    Example: `untie: {alias: model}`
    """
    from brainsurgery_jax.structure.tying import untie

    yield from untie(view, model.alias, model.part, prove=model.prove)


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

    yield from fold_norms(view, model.alias, model.part, final=final, prove=prove)


@control(configures=True)
def centre_writing(view: View, *, prove: StrictBool = False, model: ModelKeys) -> Iterator[Edit]:
    """Subtract the mean over the residual stream from all that writes to it: W - mean(W) for embeddings, and for the
    matrices and biases that attention and MLP end with.

    LayerNorm subtracts the mean of what it reads, and all is read through it, so the logits stay what they were: of
    GPT-2 and GPT-NeoX, where words are not tied. Models with RMSNorm are refused. `prove: true` asserts that no logit
    of 32 tokens changes by more than 1e-3.
    Example: `centre_writing: {prove: true}`
    Reference: Nanda and Bloom, TransformerLens (2022), https://github.com/TransformerLensOrg/TransformerLens.
    """
    from brainsurgery_jax.structure.centring import centre_writing

    yield from centre_writing(view, model.alias, model.part, prove=prove)


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

    yield from centre_unembed(view, model.alias, model.part, prove=prove)


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

    yield from fold_value_biases(view, model.alias, model.part, prove=prove)


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
    Example: `refactor_attention: {products: ov, prove: true}`
    Reference: Nanda and Bloom, TransformerLens (2022), https://github.com/TransformerLensOrg/TransformerLens.
    """
    from brainsurgery_jax.structure.attention import refactor_attention

    yield from refactor_attention(view, model.alias, model.part, products, prove=model.prove)


@control(configures=True)
def fuse(view: View, *, model: ProvenKeys) -> Iterator[Edit]:
    """Join queries, keys and values, and gate and up, into the tensors that other classes have, as bytes.

    A Mistral model (or a Llama) becomes one of the class Phi3, which computes the same. Queries, keys and values of
    GPT-NeoX lie beside each other head by head.
    Example: `fuse: {alias: model}`
    """
    from brainsurgery_jax.structure.fusing import fuse

    yield from fuse(view, model.alias, model.part, prove=model.prove)


@control(configures=True)
def unfuse(view: View, *, model: ProvenKeys) -> Iterator[Edit]:
    """Cut tensors that hold queries, keys and values, or gate and up, into these, as bytes: what `fuse` joins.

    A Phi3 model becomes one of the class Mistral.
    Example: `unfuse: {alias: model}`
    """
    from brainsurgery_jax.structure.fusing import unfuse

    yield from unfuse(view, model.alias, model.part, prove=model.prove)


@control(configures=True)
def standard_names(view: View, *, model: ModelKeys) -> Iterator[Edit]:
    """Give the tensors of a decoder the names that are the same for every family: `embed_tokens`, `layers.N.self_attn`,
    `layers.N.mlp`, `ln_final`, `lm_head`. No tensor is read; what has no such name only loses its prefix.

    A model whose words are tied gets a head of its own. For the families of Llama, GPT-2 and GPT-NeoX. Classes of
    `transformers` do not load the result: it is for tools that treat all models alike.
    Example: `standard_names: {alias: model}`
    Reference: Dumas, nnterp (2025), https://arxiv.org/abs/2511.14465.
    """
    from brainsurgery_jax.structure.standard_names import rename_to_standard

    yield from rename_to_standard(view, model.alias, model.part)


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

    yield from fold_lens(view, model.alias, model.part, lens)


@control(configures=True)
def prune(
    view: View,
    *,
    asked: UnitKeys,
    config: Annotated[
        Literal["change", "keep"], Word, Field(description="whether it is to say what is left")
    ] = "change",
    scores: Annotated[
        Literal["norm", "random"], Word, Field(description="by what units are chosen that no number names")
    ] = "norm",
    model: ProvenKeys,
) -> Iterator[Edit]:
    """Take heads, groups of heads or neurons out of every tensor that has entries for them, and out of the config.

    Numbers name those that go, for all layers or for each; all layers must have as many left. A number or a share,
    `neurons: 0.25`, takes out those with the least norm in each layer, of all their weights together, or some at
    random (`scores: random`, by the seed of the plan). Heads that share keys and values go as evenly as the config can
    say, or in whole groups (`kv_groups`). Data may choose, as `layers` says: `{scores: TENSOR, smallest: 2}`, with a
    row for each layer if the tensor has two axes. The model computes what it did with what they add set to zero, unless
    it normalizes over all heads (OLMo 2, OLMoE). `prove: true` asserts that: no logit of 32 tokens differs by more than
    1e-3 from that of the model before, in which nothing reads these units. Where no config can say what is left, it is
    refused.
    Example: `prune: {heads: [2, 5]}`
    Reference: Michel et al., Are Sixteen Heads Really Better than One? (2019), https://arxiv.org/abs/1905.10650; norms
    of groups are those of Li et al., Pruning Filters for Efficient ConvNets (2017), https://arxiv.org/abs/1608.08710.
    """
    from brainsurgery_jax.structure.pruning import AskedUnits, prune

    given = {key: getattr(asked, key) for key in ("heads", "kv_groups", "neurons")}
    found = {
        key: choose_by_layer(view, units, key) if isinstance(units, UnitChoice) else units
        for key, units in given.items()
    }
    units = AskedUnits(**found, keeps_config=config != "change", random=scores == "random")
    yield from prune(view, model.alias, model.part, units, prove=model.prove)


@dataclass(frozen=True)
class RouterKeys(KeyGroup):
    """What new routers hold."""

    router: Annotated[Text, Field(description="zero, random, or an alias with routers of these names")] = "random"
    std: Real = 0.02


@dataclass(frozen=True)
class ShardKeys(KeyGroup):
    """How experts differ from copies of the MLP."""

    shards: Annotated[Count, Field(description="experts that together are one copy of the MLP")] = 1
    drop: Annotated[float, Field(ge=0, lt=1, description="share of the neurons of an expert that are drawn anew")] = 0.0


@control(configures=True)
def upcycle(
    view: View,
    *,
    experts: Count,
    per_token: Count = 2,
    to: Annotated[Text, Field(description="the `model_type` that it becomes")] | None = None,
    routers: RouterKeys,
    parts: ShardKeys,
    model: ProvenKeys,
) -> Iterator[Edit]:
    """Turn a dense model into one with experts, each a copy of its MLP, and its config into that of the class.

    A Mistral or Llama becomes a Mixtral (or `to: olmoe`), a Qwen 3 a `qwen3_moe`, an OLMo 2 a `flex_olmo`. As the
    weights of the experts that a token takes add up to 1, the model computes what the dense one did, whatever the
    routers hold: zeros, normal random numbers with deviation `std`, or the rows of another alias. An `olmoe` also
    normalizes queries and keys, and so computes something else until it is trained.
    `shards: 4` cuts each copy into four experts (virtual groups), which share a row of the router and are multiplied by
    four, so that a token takes whole copies, and computes the same; `router` then names one row for each copy.
    `drop: 0.5` draws that share of the neurons of each expert anew, by the mean and deviation of what it replaces in
    each matrix, so that experts differ; the model then computes something else.
    Example: `upcycle: {experts: 8, per_token: 2}`
    Reference: Komatsuzaki et al., Sparse Upcycling (2022), https://arxiv.org/abs/2212.05055; shards are those of He et
    al. (2024), https://arxiv.org/abs/2410.07524, and dropped neurons those of Nakamura et al., Drop-Upcycling (2025),
    https://arxiv.org/abs/2502.19261.
    """
    from brainsurgery_jax.structure.upcycling import Upcycling, upcycle

    asked = Upcycling(to, experts, per_token, routers.router, routers.std, parts.shards, parts.drop)
    yield from upcycle(view, model.alias, model.part, asked, prove=model.prove)


Experts = Annotated[tuple[StrictInt, ...], Field(min_length=1, description="numbers of experts, from 0")]


def read_experts(value: object) -> object:
    """Some experts: a list of numbers, or a choice by data."""
    if isinstance(value, Mapping):
        return read_chosen(value)
    if not isinstance(value, list | tuple) or not value or not all(type(n) is int for n in value):
        raise ValueError(f"expected a list of numbers, or {FORM}; got {value!r}")
    return tuple(value)


SomeExperts = Annotated[
    object,
    AfterValidator(read_experts),
    WithJsonSchema({"anyOf": [{**_NUMBERS, "minItems": 1}, SCHEMA]}),
    Field(description="numbers of experts, from 0; or a choice by data"),
]


@control(configures=True)
def expert_prune(
    view: View, *, keep: SomeExperts | None = None, drop: SomeExperts | None = None, model: ProvenKeys
) -> Iterator[Edit]:
    """Keep some experts of every layer with their rows of the router, number them anew, and change the config.

    The model computes what it did if no token might take the others; `prove: true` asserts that it does for 32 tokens,
    to 1e-3 in every logit. `keep` may list them in another order. Data may choose, as `layers` says:
    `{scores: 'stats::usage', smallest: 2}`.
    Example: `expert_prune: {drop: [3, 5]}`
    """
    from brainsurgery_jax.structure.experts import prune_experts

    kept, dropped = _numbers(view, keep, "keep"), _numbers(view, drop, "drop")
    yield from prune_experts(view, model.alias, model.part, kept, dropped, prove=model.prove)


@control(configures=True)
def expert_merge(
    view: View,
    *,
    groups: Annotated[tuple[Experts, ...], Field(min_length=1, description="the experts that become one, for each")],
    model: ModelKeys,
) -> Iterator[Edit]:
    """Make one expert of each group: the mean of their weights, and of their rows of the router.

    Every expert is in one group; one alone stays as it is.
    Example: `expert_merge: {groups: [[0, 1], [2, 3]]}`
    """
    from brainsurgery_jax.structure.experts import merge_experts

    yield from merge_experts(view, model.alias, model.part, groups)


def read_ranks(value: object) -> object:
    """The ranks of experts: a mapping of their numbers."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"expected a mapping of experts to ranks, got {value!r}")
    for expert, rank in value.items():
        if not str(expert).isdecimal() or type(rank) is not int or rank < 1:
            raise ValueError(f"expected numbers of experts and ranks from 1, got {expert!r}: {rank!r}")
    return {int(str(expert)): rank for expert, rank in value.items()}


ExpertRanks = Annotated[
    Mapping[int, int],
    PlainValidator(read_ranks),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "integer", "exclusiveMinimum": 0}}),
    Field(description="the rank of each of these experts: `{1: 8, 2: 64}`"),
]


@control(configures=True)
def expert_ranks(
    view: View,
    *,
    rank: Annotated[Count, Field(description="the rank of all experts that `ranks` does not name")] | None = None,
    ranks: ExpertRanks | None = None,
    public: Annotated[StrictInt, Field(ge=0, description="the expert that the others are measured against")] = 0,
    model: ModelKeys,
) -> Iterator[Edit]:
    """Give experts low ranks of several sizes: W becomes W0 + lowrank(W - W0), with W0 that of the public expert.

    `rank` is that of all, `ranks` of those that it names; experts that neither names stay as they are, and so does the
    public one. Differences are taken and factorized in float32, and the result is rounded once. It has the shapes of
    before, so that the same class loads it; at full rank it computes what it did.
    Example: `expert_ranks: {rank: 64, ranks: {1: 8, 2: 8}}`
    Reference: FlexMoRE (2026), https://arxiv.org/abs/2602.08818.
    """
    from brainsurgery_jax.structure.ranks import lower_ranks

    yield from lower_ranks(view, model.alias, model.part, rank, ranks or {}, public)


@control(configures=True)
def expert_join(
    view: View,
    *,
    others: Annotated[tuple[Text, ...], Field(min_length=1, description="the aliases whose experts are added")],
    public: Annotated[StrictInt, Field(ge=0, description="the first experts, which all have in common")] = 1,
    model: ProvenKeys,
) -> Iterator[Edit]:
    """Add the experts of other models, with their rows of the router, to those of a model (FlexOlmo).

    Each model was trained apart from the same one: it holds the `public` experts, which must be identical, and its own.
    All else stays that of the model itself. `expert_prune` takes experts out again, as they came: who gave them opts
    out. `prove: true` asserts that the model computes what it did if all others do: no logit of 32 tokens changes by
    more than 1e-3.
    Example: `expert_join: {alias: math, others: [code, news]}`
    Reference: Shi et al., FlexOlmo (2025), https://arxiv.org/abs/2507.07024.
    """
    from brainsurgery_jax.structure.joining import join_experts

    yield from join_experts(view, model.alias, model.part, others, public, prove=model.prove)


@control(configures=True)
def experts(
    view: View,
    *,
    names: Annotated[Literal["stacked", "separate"], Word],
    model: ProvenKeys,
) -> Iterator[Edit]:
    """Put all experts of a layer into two tensors, or give each names of its own: bytes are moved.

    `stacked` has `gate_up_proj` [experts, 2 x neurons, size] and `down_proj` [experts, size, neurons], as transformers
    holds them from version 5 on; `separate` has the names of checkpoints on the hub. Both load.
    Example: `experts: {names: stacked}`
    """
    from brainsurgery_jax.structure.experts import separate_experts, stack_experts

    yield from {"stacked": stack_experts, "separate": separate_experts}[names](
        view, model.alias, model.part, prove=model.prove
    )
