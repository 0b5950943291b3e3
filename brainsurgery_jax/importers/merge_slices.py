"""Steps for slices of methods that are no linear combination: each slice is put together, then merged by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from brainsurgery_jax.importers.config_reader import FORM
from brainsurgery_jax.importers.imported import StepComment
from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.importers.merge_parts import SlicePart, refuse_no_weight
from brainsurgery_jax.importers.merge_steps import SlicePlace, StepParts
from brainsurgery_jax.importers.mergekit_config import NEEDS_BASE, Config, MergeSource
from brainsurgery_jax.importers.patterns import selections, shift_name
from brainsurgery_jax.protocol import Substep


@dataclass(frozen=True)
class SliceMerges:
    """Writes the steps of one configuration."""

    config: Config
    models: Mapping[str, Model]
    to: str

    def steps(self, parts: Iterable[SlicePart]) -> Iterator[Substep | StepComment]:
        """The steps for the parts of the result. Raises PlanError."""
        yield Substep("prefixes", {"mode": "add", "alias": self.to})
        found = [part for part in parts if part.names]
        for number, part in enumerate(found):
            yield from self._part(number, part)
        dtype = self.config.out_dtype or self.config.dtype
        if dtype is not None and any(map(self._is_copied, found)):
            yield Substep("cast_", {"target": f"{self.to}::.*", "to": dtype})

    def _is_copied(self, part: SlicePart) -> bool:
        """Whether a part has the base alone, with which nothing is merged."""
        first, *others = part.slice.sources
        return not others and first.model == self.config.base and self.config.method in NEEDS_BASE

    def _part(self, number: int, part: SlicePart) -> Iterator[Substep | StepComment]:
        first = part.slice.sources[0]
        self._refuse_no_merge(part.slice.sources)
        refuse_no_weight(self.config, part)
        count = 0 if part.start is None else len(_layers(first))
        start = part.start or 0
        place = SlicePlace(number, self.models[first.model].stack.prefix, range(start, start + count))
        if part.start is not None:
            yield StepComment(f"layers {start} to {start + count - 1}")
        if self._is_copied(part):
            yield from self._copies(part, first, self.to)
            return
        for source in part.slice.sources:
            alias = place.alias(self.models[source.model])
            yield Substep("prefixes", {"mode": "add", "alias": alias})
            yield from self._copies(part, source, alias)
        yield Substep("merge", StepParts(self.config, self.models, part.slice, place).payload(self.to))

    def _refuse_no_merge(self, sources: Sequence[MergeSource]) -> None:
        base, method, first = self.config.base, self.config.method, sources[0]
        if base is not None and all(source.model != base for source in sources):
            message = f"the base '{base}' is not among the sources of a slice: which of its layers belong there?"
            raise refuse(message, first.span, "Add it to the sources, with its layer_range.", FORM)
        if len(sources) == 1 and method not in NEEDS_BASE:
            message = f"{method} merges several models, and a slice has '{first.model}' alone"
            hint = "Add a source to the slice. To stack layers as they are, write `merge_method: passthrough`."
            raise refuse(message, first.span, hint, FORM)

    def _copies(self, part: SlicePart, source: MergeSource, to: str) -> Iterator[Substep]:
        """The steps that copy what a source has of a part, its layers numbered as in the result."""
        model, first = self.models[source.model], part.slice.sources[0]
        inside = part.start is not None
        by = _layers(source).start - _layers(first).start if inside else 0
        shift = part.start - _layers(source).start if part.start is not None else 0
        own = [shift_name(name, self.models[first.model].stack, by) for name in part.names]
        for pattern in selections(own, model.names, model.stack if inside else None, [], renumber=bool(shift)):
            name = self.models[first.model].template(pattern, shift)
            yield Substep("copy", {"from": f"{model.alias}::{pattern}", "to": f"{to}::{name}"})


def _layers(source: MergeSource) -> range:
    assert source.layers is not None, "which the reader asks for"
    return source.layers
