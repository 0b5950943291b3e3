"""Ops on the structure of models whose family is known: they change tensors and config together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictInt, WithJsonSchema

from brainsurgery_jax.keys import KeyGroup, Text, Word
from brainsurgery_jax.op import Real, control
from brainsurgery_jax.ops._chosen import FORM, SCHEMA, UnitChoice, choose_by_layer, read_chosen
from brainsurgery_jax.ops._models import NUMBERS, Count, ProvenKeys, numbers_of
from brainsurgery_jax.protocol import Edit, View


def read_layers(value: object) -> object:
    """Some layers: a list of numbers and ranges, or a choice by data."""
    if isinstance(value, Mapping):
        return read_chosen(value)
    if not isinstance(value, list | tuple) or not value or not all(type(n) in (int, str) for n in value):
        raise ValueError(f"expected a list of numbers and of ranges such as '4:8', or {FORM}; got {value!r}")
    return tuple(value)


_RANGES = {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1}
Layers = Annotated[
    object,
    AfterValidator(read_layers),
    WithJsonSchema({"anyOf": [_RANGES, SCHEMA]}),
    Field(description="numbers, and ranges as Python slices them: [0, '4:8', '-2:']; or a choice by data"),
]


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
        {"anyOf": [NUMBERS, {"type": "object", "additionalProperties": NUMBERS}, {"type": "number"}, SCHEMA]}
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


def read_rows(value: object) -> object:
    """Where the rows of some words come from: an alias, `zero`, or a mapping of `from`, `word` and `force`."""
    wanted = "expected a mapping of words to an alias, to zero, or to {from: ALIAS, word: TEXT or NUMBER, force: true}"
    if not isinstance(value, Mapping):
        raise ValueError(f"{wanted}, got {value!r}")
    made: dict[str, tuple[str | None, str | int | None, bool]] = {}
    for text, given in value.items():
        own = {"from": given} if isinstance(given, str) else given
        match {"from": None, "word": None, "force": False, **own} if isinstance(own, Mapping) and own else None:
            case {"from": str() | None as source, "word": str() | int() | None as word, "force": bool() as force} if (
                len(own.keys() | {"from", "word", "force"}) == 3
                and not isinstance(word, bool)
                and (word is None or source is not None)
            ):
                made[str(text)] = (source, word, force)
            case _:
                raise ValueError(f"{wanted}, got {given!r} for {text!r}")
    return made


_ROW = {"type": ["string", "object"]}
Rows = Annotated[
    object,
    AfterValidator(read_rows),
    WithJsonSchema({"type": "object", "additionalProperties": _ROW}),
    Field(description="of words that are not in all models: whose row they get, an alias or zero"),
]


@dataclass(frozen=True)
class AlignmentKeys(KeyGroup):
    """Several models that get the same words."""

    models: (
        Annotated[tuple[Text, ...], Field(min_length=1, description="aliases that all get the words of `tokenizer`")]
        | None
    ) = None
    base: Annotated[Text, Field(description="the model whose rows the others get for words they lack")] | None = None
    words: Rows | None = None


@dataclass(frozen=True)
class WordKeys(KeyGroup):
    """Which words there are afterwards."""

    size: Count | None = None
    multiple_of: Count | None = None
    order: (
        Annotated[tuple[StrictInt, ...], Field(min_length=1, description="old numbers, in their new order")] | None
    ) = None
    tokenizer: (
        Annotated[
            Text,
            Field(description="the alias of the new tokenizer; or union"),
        ]
        | None
    ) = None


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

    given = {key: numbers_of(view, getattr(asked, key), key) for key in ("keep", "drop", "repeat", "order")}
    how = AskedLayers(**given, scale_copies=scale_copies, prove=model.prove)
    yield from change_layers(view, model.asked, stack or "", how)


@control(configures=True)
def vocab(
    view: View,
    *,
    asked: WordKeys,
    rows: Annotated[
        Text, Field(description="what new rows hold: mean, zero, or an alias with tensors of these names")
    ] = "mean",
    shared: AlignmentKeys,
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
    `models` lists several models that all get the words of `tokenizer`, one of them or their `union`, so that they can
    be merged. A word that a model lacks gets the row of `base` if that has it, else the mean of the rows of those that
    do; `words` names another one, or zeros.
    Example: `vocab: {multiple_of: 64, rows: zero}`
    Example: `vocab: {models: [a, b], tokenizer: union}`
    """
    from brainsurgery_jax.structure.alignment import refuse_shared
    from brainsurgery_jax.structure.vocab import AskedWords, change_words

    if shared.models is not None:
        yield from _align(view, asked, shared, model)
        return
    refuse_shared({"base": shared.base, "words": shared.words})
    words = AskedWords(asked.size, asked.multiple_of, asked.order, asked.tokenizer, rows)
    yield from change_words(view, model.asked, words, prove=model.prove)


def _align(view: View, asked: WordKeys, shared: AlignmentKeys, model: ProvenKeys) -> Iterator[Edit]:
    """`vocab` of several models."""
    from brainsurgery_jax.structure.alignment import AskedAlignment, AskedRow, align, refuse_single

    alone = {"size": asked.size, "order": asked.order, "alias": model.alias, "part": model.part,
             "prove": model.prove or None, "family": model.family}  # fmt: skip
    refuse_single(alone)
    assert shared.models is not None and isinstance(shared.words, Mapping | None)
    words = {text: AskedRow(*row) for text, row in (shared.words or {}).items()}
    yield from align(view, AskedAlignment(shared.models, asked.tokenizer, shared.base, words, asked.multiple_of))


@control(configures=True)
def tie(view: View, *, replace: StrictBool = False, model: ProvenKeys) -> Iterator[Edit]:
    """Let a model have one table for the words that come in and those that go out, and say so in its config.

    Both must be identical, so that the model computes what it did; with `replace: true` the one for words that go out
    is left out whatever it holds.
    Example: `tie: {alias: model}`
    """
    from brainsurgery_jax.structure.tying import tie

    yield from tie(view, model.asked, replace=replace, prove=model.prove)


@control(configures=True)
def untie(view: View, *, model: ProvenKeys) -> Iterator[Edit]:
    """Give a model a table of its own for the words that go out, a copy of the other one, and say so in its config.

    Example: `untie: {alias: model}`
    """
    from brainsurgery_jax.structure.tying import untie

    yield from untie(view, model.asked, prove=model.prove)


@control(configures=True)
def fuse(view: View, *, model: ProvenKeys) -> Iterator[Edit]:
    """Join queries, keys and values, and gate and up, into the tensors that other classes have, as bytes.

    A Mistral model (or a Llama) becomes one of the class Phi3, which computes the same. Queries, keys and values of
    GPT-NeoX lie beside each other head by head.
    Example: `fuse: {alias: model}`
    """
    from brainsurgery_jax.structure.fusing import fuse

    yield from fuse(view, model.asked, prove=model.prove)


@control(configures=True)
def unfuse(view: View, *, model: ProvenKeys) -> Iterator[Edit]:
    """Cut tensors that hold queries, keys and values, or gate and up, into these, as bytes: what `fuse` joins.

    A Phi3 model becomes one of the class Mistral.
    Example: `unfuse: {alias: model}`
    """
    from brainsurgery_jax.structure.fusing import unfuse

    yield from unfuse(view, model.asked, prove=model.prove)


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
    yield from prune(view, model.asked, units, prove=model.prove)
