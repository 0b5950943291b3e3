"""Ops on the experts of a model: dense models get some, and experts are chosen, merged, added and laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, StrictInt, WithJsonSchema

from brainsurgery_jax.keys import KeyGroup, Text, Word
from brainsurgery_jax.op import Real, control
from brainsurgery_jax.ops._chosen import FORM, SCHEMA, read_chosen
from brainsurgery_jax.ops._models import NUMBERS, Count, ModelKeys, ProvenKeys, numbers_of
from brainsurgery_jax.protocol import Edit, View


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
    yield from upcycle(view, model.asked, asked, prove=model.prove)


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
    WithJsonSchema({"anyOf": [{**NUMBERS, "minItems": 1}, SCHEMA]}),
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

    kept, dropped = numbers_of(view, keep, "keep"), numbers_of(view, drop, "drop")
    yield from prune_experts(view, model.asked, kept, dropped, prove=model.prove)


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

    yield from merge_experts(view, model.asked, groups)


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
    public one. Differences are taken and factorized in float32 (float64 stays), and the result is rounded once. It has
    the shapes of before, so that the same class loads it; at full rank it computes what it did.
    Example: `expert_ranks: {rank: 64, ranks: {1: 8, 2: 8}}`
    Reference: FlexMoRE (2026), https://arxiv.org/abs/2602.08818.
    """
    from brainsurgery_jax.structure.ranks import lower_ranks

    yield from lower_ranks(view, model.asked, rank, ranks or {}, public)


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

    yield from join_experts(view, model.asked, others, public, prove=model.prove)


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

    yield from {"stacked": stack_experts, "separate": separate_experts}[names](view, model.asked, prove=model.prove)
