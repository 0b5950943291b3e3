"""Ops on the structure of models whose family is known: they change tensors and config together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StrictInt

from brainsurgery_jax.keys import KeyGroup, Text
from brainsurgery_jax.op import Real, control
from brainsurgery_jax.protocol import Edit, View

Layers = Annotated[
    tuple[StrictInt | Text, ...],
    Field(min_length=1, description="numbers, and ranges as Python slices them: [0, '4:8', '-2:']"),
]


@dataclass(frozen=True)
class ModelKeys(KeyGroup):
    """Which model is meant."""

    alias: Annotated[Text, Field(description="the model, if there are several")] | None = None
    part: Annotated[Text, Field(description="of a model of several: the key of its part of config.json")] | None = None


@dataclass(frozen=True)
class LayerKeys(KeyGroup):
    """Which layers there are afterwards: one of the four."""

    keep: Layers | None = None
    drop: Layers | None = None
    repeat: Layers | None = None
    order: Layers | None = None


@control(configures=True)
def layers(
    view: View,
    *,
    asked: LayerKeys,
    stack: Annotated[Text, Field(description="encoder or decoder, of a model with both")] | None = None,
    scale_copies: Real = 1.0,
    model: ModelKeys,
) -> Iterator[Edit]:
    """Keep, drop, repeat or reorder the layers of a model, or take some from another one, and change its config.

    `keep` and `drop` leave the others in their order, `repeat` lets each of these follow itself, and `order` lists all
    layers of the result, those of other models as 'other::4:8'. `scale_copies: 0` multiplies what layers that come
    again add to the residual stream, so that they change nothing until they are trained (not after a norm: BERT).
    The config gets the number of layers, and what it lists for each.
    Example: `layers: {drop: [3, 4, 5]}`
    Example: `layers: {order: ['0:24', '8:32'], alias: model}`
    Reference: depth upscaling is that of Kim et al., SOLAR 10.7B (2023), https://arxiv.org/abs/2312.15166; copies that
    add nothing are those of Wu et al., LLaMA Pro (2024), https://arxiv.org/abs/2401.02415.
    """
    from brainsurgery_jax.structure.layers import Asked, change_layers  # some milliseconds, which few plans need

    how = Asked(asked.keep, asked.drop, asked.repeat, asked.order, scale_copies)
    yield from change_layers(view, model.alias, model.part, stack or "", how)
