"""The logits of a model as a graph: a call for each layer, on the weights of that layer alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.forward.architecture import Config, decoder_of
from brainsurgery_jax.forward.layers import embedding, head, layer
from brainsurgery_jax.forward.settings import Decoder
from brainsurgery_jax.forward.shapes import needed_slots, sizes_of, wanted_shapes
from brainsurgery_jax.forward.weights import LayerWeights, Places, layers_of, places_of, prefix_of, refuse_others
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

    @property
    def table(self) -> TensorExpr:
        """The table of embeddings."""
        return self.tensor(f"{self.prefix}{self.places.embedding}.weight")

    @property
    def last_norm(self) -> list[TensorExpr]:
        """The weight of the last norm, and its bias: as many as the model has."""
        names = [f"{self.prefix}{self.places.norm}.{kind}" for kind in ("weight", "bias")]
        bare = all(settings.bare_norms for settings in self.decoder.layers)
        needed = [] if bare else names[:1]
        return [self.tensor(name) for name in names if name in needed or name in self.model.names]


def logits(model: DecoderModel, tokens: Sequence[int]) -> TensorExpr:
    """The logits [tokens, vocabulary] in float32 of a decoder for a sequence of tokens, from position 0.

    Raises `Refusal` if the family is not known, if tensors are missing or left over, and for tokens out of range.
    """
    decoder = decoder_of(model.config)
    check_tokens(tokens, decoder.vocabulary)
    places = places_of(decoder.family)
    parts = _Parts(model, decoder, places, prefix_of(places, model.names))
    refuse_others(places, parts.prefix, model.names)
    hidden = _embed(parts, tokens)
    for settings, held in zip(decoder.layers, _layers(parts), strict=True):
        weights = map(model.fetch, held.names)
        hidden = model.apply(layer, hidden, *weights, settings=settings, slots=held.slots)
    return _head(parts, hidden)


def check_count(tokens: int) -> None:
    """Refuse no tokens, and too many."""
    if not 1 <= tokens <= LONGEST:
        raise Refusal("forward-tokens", f"{tokens:,} tokens were given, possible are 1 to {LONGEST:,}",
                      key="tokens", hint="Give a short sequence: 32 tokens show a difference.")  # fmt: skip


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Refuse tokens that a model does not have, none of them, and too many."""
    check_count(len(tokens))
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
    wanted = range(len(parts.decoder.layers))
    unread = range(len(wanted), len(wanted) + parts.decoder.further)
    found = layers_of(parts.places, parts.prefix, parts.model.names, unread)
    if list(found) != list(wanted):
        have = f"{len(found)} layers" if list(found) == list(range(len(found))) else f"the layers {list(found)}"
        raise Refusal("forward-incomplete", f"config.json says {len(wanted)} layers, and the model has {have}",
                      hint="Correct the number of layers in config.json, or number the layers from 0.")  # fmt: skip
    for number, held in found.items():
        _check_layer(parts, number, held)
    return list(found.values())


def _check_layer(parts: _Parts, number: int, held: LayerWeights) -> None:
    """Refuse a layer without a weight that its family has, and a weight that does not fit the others or the config."""
    settings, width = parts.decoder.layers[number], parts.table.aval.shape[-1]
    avals = {slot: parts.model.fetch(name).aval for slot, name in zip(held.slots, held.names, strict=True)}
    shapes = {slot: aval.shape for slot, aval in avals.items()}
    sizes = sizes_of(shapes, settings, width)
    for slot in needed_slots(parts.places.roles, settings, shapes, sizes.experts):
        if slot not in shapes:
            hint = "Name a whole model, or correct `model_type` in config.json."
            place = f"{parts.prefix}{parts.places.place_of(slot, number)}"
            raise Refusal("forward-incomplete", f"there is no tensor '{place}', which the logits need", hint=hint)
    for (slot, aval), name in zip(avals.items(), held.names, strict=True):
        wanted = wanted_shapes(slot, settings, sizes)
        if aval.shape not in wanted:
            hint = "Correct the sizes in config.json, or the tensor."
            shown = " or ".join(str(list(shape)) for shape in wanted)
            raise Refusal("forward-incomplete", f"'{name}' is {aval}, and the logits need {shown}", hint=hint)


def _head(parts: _Parts, hidden: TensorExpr) -> TensorExpr:
    decoder, places = parts.decoder, parts.places
    own = f"{places.head}.weight"
    tied = decoder.tied or own not in parts.model.names
    if tied and not decoder.tied:
        raise Refusal("forward-incomplete", f"there is no tensor '{own}', and config.json does not tie it",
                      hint="Add `tie_word_embeddings: true` to it if the embeddings are the head.")  # fmt: skip
    table = parts.table if tied else parts.tensor(own)
    bias = [parts.model.fetch(name) for name in (f"{places.head}.bias",) if name in parts.model.names]
    if bias and bias[0].aval.shape != table.aval.shape[:1]:
        message = f"'{places.head}.bias' is {bias[0].aval}, and the logits need {list(table.aval.shape[:1])}"
        raise Refusal("forward-incomplete", message, hint="Correct the sizes in config.json, or the tensor.")
    return parts.model.apply(
        head, hidden, table, *parts.last_norm, *bias,
        norm=decoder.norm, factor=decoder.logits, cap=decoder.cap, biased=bool(bias),
    )  # fmt: skip
