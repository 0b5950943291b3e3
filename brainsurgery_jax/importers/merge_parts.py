"""The parts of a result that are merged alike, and their tensors: a whole model, or slices of layers and their ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from brainsurgery_jax.importers.config_reader import FORM
from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.importers.mergekit_config import Config, MergeSlice, MergeSource
from brainsurgery_jax.importers.mergekit_parameters import PARAMETERS
from brainsurgery_jax.importers.patterns import Stack

_FRONT = ("embed", "wte", "wpe")
_BACK = ("norm", "lm_head", "ln_f", "embed_out")


class SlicePart(NamedTuple):
    """A part of the result. `names`: those in the first source. `start`: for the layers of a slice, the number of the
    first one in the result."""

    slice: MergeSlice
    names: tuple[str, ...]
    start: int | None = None


@dataclass(frozen=True)
class MergeParts:
    """What a configuration merges. Methods raise PlanError for sources that do not fit together."""

    config: Config
    models: Mapping[str, Model]

    @cached_property
    def whole(self) -> bool:
        """Whether the result has the tensors of whole models, with their names."""
        if not self.config.sliced:
            return True
        sources = self.config.slices[0].sources
        return len(self.config.slices) == 1 and all(s.layers == range(self.stack(s).size) for s in sources)

    @property
    def first(self) -> Model:
        """The model whose side files the result gets."""
        return next(iter(self.models.values()))

    def of(self, source: MergeSource) -> Model:
        """The model of a source."""
        return self.models[source.model]

    def stack(self, source: MergeSource) -> Stack:
        """The layers of its model."""
        return self.models[source.model].stack

    def layers(self, source: MergeSource) -> range:
        """The numbers of the layers that it takes."""
        layers, count = source.layers, self.stack(source).size
        assert layers is not None
        if layers.stop > count:
            given = f"layer_range [{layers.start}, {layers.stop}]"
            message = f"{given} goes beyond '{source.model}', which has {count} layers"
            raise refuse(message, source.span, f"END is at most {count}.", FORM)
        return layers

    def pieces(self) -> Iterator[SlicePart]:
        """The parts in the order of the result: what comes before the layers, each slice, what comes behind them."""
        head, tail = self.config.slices[0], self.config.slices[-1]
        if self.whole:
            yield SlicePart(head, tuple(self.first.dtypes or ()))
            return
        alike = _without_layers(head) == _without_layers(tail)
        if not alike:
            self._refuse_other_ends(head.sources[0], tail.sources[0])
        names = self._shared_names(head, lambda source: self._outside(source, front=True, back=alike))
        yield SlicePart(head, names)
        start = 0
        for piece in self.config.slices:
            names = self._shared_names(piece, lambda source, piece=piece: self._inside(piece, source))
            yield SlicePart(piece, names, start)
            start += len(self.layers(piece.sources[0]))
        if not alike:
            names = self._shared_names(tail, lambda source: self._outside(source, front=False, back=True))
            yield SlicePart(tail, names)

    def _inside(self, piece: MergeSlice, source: MergeSource) -> Iterator[str]:
        """The tensors of a source's layers, by their names in the first source."""
        by = self.layers(piece.sources[0]).start - self.layers(source).start
        for name in self.models[source.model].names:
            if (place := self.stack(source).place(name)) is not None and place[0] in self.layers(source):
                yield f"{self.stack(piece.sources[0]).prefix}.{place[0] + by}.{place[1]}"

    def _shared_names(self, piece: MergeSlice, names_of: Callable[[MergeSource], Iterable[str]]) -> tuple[str, ...]:
        """The names of the merged tensors, which must be equal in all sources."""
        first, *others = piece.sources
        names = tuple(names_of(first))
        for other in others:
            self._refuse_unlike(first, other, set(names), set(names_of(other)))
        return names

    def _refuse_other_ends(self, head: MergeSource, tail: MergeSource) -> None:
        """Refuse to take the tensors before the layers from one model and those behind them from another if their names
        differ: some would be lost, or config.json would not describe them."""
        ends = [set(self._outside(source, front=True, back=True)) for source in (head, tail)]
        self._refuse_unlike(head, tail, *ends)

    def _refuse_unlike(self, one: MergeSource, other: MergeSource, ours: set[str], theirs: set[str]) -> None:
        if ours == theirs:
            return
        has, lacks, more = (one, other, ours - theirs) if ours - theirs else (other, one, theirs - ours)
        count = f" and {len(more) - 1:,} more tensors" if len(more) > 1 else ""
        message = f"'{has.model}' has '{min(more)}'{count} that '{lacks.model}' lacks, so they cannot be merged"
        raise refuse(message, other.span, "Merge models of one architecture: equal layers, heads and biases.")

    def _outside(self, source: MergeSource, *, front: bool, back: bool) -> Iterator[str]:
        """The tensors before the layers, behind them, or both."""
        for name in self.models[source.model].names:
            if self.stack(source).place(name) is not None:
                continue
            in_front = any(text in name for text in _FRONT) and "embed_out" not in name
            behind = not in_front and any(text in name for text in _BACK)
            if (front and back) or (front and in_front) or (back and behind):
                yield name
            elif not in_front and not behind:
                message = f"does '{name}' of '{source.model}' belong before its layers, or behind them?"
                raise refuse(message, source.span)

    def shift(self, piece: SlicePart, source: MergeSource) -> int:
        """The offset of a source's layers from those of the first source."""
        if piece.start is None:
            return 0
        return self.layers(source).start - self.layers(piece.slice.sources[0]).start


def refuse_no_weight(config: Config, part: SlicePart) -> None:
    """Refuse a model without a weight for any tensor of a part, as mergekit does, where a step `merge` would take 1."""
    if "weight" not in PARAMETERS[config.method]:
        return
    for source in part.slice.sources:
        for name in (part.names or ("",)) if source.model != config.base else ():
            config.needed("weight", part.slice, source, name)


def _without_layers(piece: MergeSlice) -> object:
    return [(s.model, s.parameters) for s in piece.sources], piece.parameters
