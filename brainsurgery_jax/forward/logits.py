"""The logits of a model as a graph: a call for each layer, on the weights of that layer alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.forward.architecture import Config, Decoder, Layer, decoder_of
from brainsurgery_jax.forward.layers import embedding, head, layer
from brainsurgery_jax.forward.weights import PLACES, LayerWeights, Places, layers_of, prefix_of
from brainsurgery_jax.op import Kernel
from brainsurgery_jax.ops.shape import take
from brainsurgery_jax.protocol import TensorExpr

LONGEST = 4096
"""Tokens that are looked at: logits are held for all of them."""


class DecoderModel(Protocol):
    """A model whose tensors can be asked for by name, and put into calls of kernels."""

    @property
    def config(self) -> Config: ...
    @property
    def names(self) -> Collection[str]: ...
    def fetch(self, name: str) -> TensorExpr: ...
    def apply(self, kernel: Kernel[..., Array], *srcs: TensorExpr, **params: object) -> TensorExpr: ...


class _Parts(NamedTuple):
    """A model taken apart."""

    model: DecoderModel
    decoder: Decoder
    places: Places
    prefix: str

    def tensor(self, name: str) -> TensorExpr:
        if name not in self.model.names:
            raise Refusal("forward-incomplete", f"there is no tensor '{name}', which the logits need",
                          hint="Name a whole model, or correct config.json.")  # fmt: skip
        return self.model.fetch(name)

    def optional(self, *names: str) -> list[TensorExpr]:
        return [self.model.fetch(name) for name in names if name in self.model.names]


def logits(model: DecoderModel, tokens: Sequence[int]) -> TensorExpr:
    """The logits [tokens, vocabulary] in float32 of a decoder for a sequence of tokens, from position 0.

    Raises `Refusal` if the family is not known, if tensors are missing or left over, and for tokens out of range.
    """
    decoder = decoder_of(model.config)
    check_tokens(tokens, decoder.vocabulary)
    places = PLACES[decoder.family]
    parts = _Parts(model, decoder, places, prefix_of(places, model.names))
    hidden = _embed(parts, tokens)
    for settings, held in zip(decoder.layers, _layers(parts), strict=True):
        weights = map(model.fetch, held.names)
        hidden = model.apply(layer, hidden, *weights, settings=settings, slots=held.slots)
    return _head(parts, hidden)


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Refuse tokens that a model does not have, none of them, and too many."""
    if not 1 <= len(tokens) <= LONGEST:
        raise Refusal("forward-tokens", f"{len(tokens):,} tokens were given, possible are 1 to {LONGEST:,}",
                      key="tokens", hint="Give a short sequence: 32 tokens show a difference.")  # fmt: skip
    if (wrong := next((t for t in tokens if not 0 <= t < vocabulary), None)) is not None:
        raise Refusal("forward-tokens", f"token {wrong} is not among the {vocabulary:,} of the vocabulary",
                      key="tokens", hint=f"Valid are 0 to {vocabulary - 1}.")  # fmt: skip


def _embed(parts: _Parts, tokens: Sequence[int]) -> TensorExpr:
    tables = [(parts.places.embedding, tuple(tokens))]
    if parts.places.positions:
        tables.append((parts.places.positions, tuple(range(len(tokens)))))
    rows = [
        parts.model.apply(take, parts.tensor(f"{parts.prefix}{name}.weight"), indices=indices, dim=0)
        for name, indices in tables
    ]
    return parts.model.apply(embedding, *rows, factor=parts.decoder.embedding)


def _layers(parts: _Parts) -> list[LayerWeights]:
    found = layers_of(parts.places, parts.prefix, parts.model.names)
    wanted = range(len(parts.decoder.layers))
    if list(found) != list(wanted):
        have = f"{len(found)} layers" if list(found) == list(range(len(found))) else f"the layers {list(found)}"
        raise Refusal("forward-incomplete", f"config.json says {len(wanted)} layers, and the model has {have}",
                      hint="Correct the number of layers in config.json, or number the layers from 0.")  # fmt: skip
    for number, held in found.items():
        _check_roles(parts, number, held)
    return list(found.values())


def _check_roles(parts: _Parts, number: int, held: LayerWeights) -> None:
    """Refuse a layer without a weight of a role that its family has."""
    settings, slots = parts.decoder.layers[number], set(held.slots)
    for role in _slots_of(parts.places, settings, slots):
        if role not in slots:
            module = parts.places.roles[role.removesuffix(".weight")]
            place = f"{parts.prefix}{parts.places.layer.replace('#', str(number))}.{module}.weight"
            raise Refusal("forward-incomplete", f"there is no tensor '{place}', which the logits need",
                          hint="Name a whole model, or correct `model_type` in config.json.")  # fmt: skip


def _slots_of(places: Places, settings: Layer, slots: Collection[str]) -> list[str]:
    """The slots that a layer must have. Experts may be stacked or not; the router says how many there are."""
    sparse = settings.router is not None
    dense = ("gate", "up", "down")
    return [
        f"{role}.weight"
        for role in places.roles
        if not role.startswith("expert") and (sparse if role == "router" else not (sparse and role in dense))
    ]


def _head(parts: _Parts, hidden: TensorExpr) -> TensorExpr:
    decoder, places = parts.decoder, parts.places
    own = f"{places.head}.weight"
    tied = decoder.tied or own not in parts.model.names
    if tied and not decoder.tied:
        raise Refusal("forward-incomplete", f"there is no tensor '{own}', and config.json does not tie it",
                      hint="Add `tie_word_embeddings: true` to it if the embeddings are the head.")  # fmt: skip
    table = parts.tensor(f"{parts.prefix}{places.embedding}.weight" if tied else own)
    last = parts.optional(*(f"{parts.prefix}{places.norm}.{kind}" for kind in ("weight", "bias")))
    return parts.model.apply(head, hidden, table, *last, norm=decoder.norm, factor=decoder.logits, cap=decoder.cap)
