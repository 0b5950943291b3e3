"""The step `merge` for the methods of a configuration that are no linear combination."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.importers.merge_models import Model
from brainsurgery_jax.importers.mergekit_config import Config, MergeSlice, MergeSource
from brainsurgery_jax.importers.mergekit_parameters import NAMES, PARAMETERS, SWITCHES, Setting
from brainsurgery_jax.merging.settings import between, depth_of


class SlicePlace(NamedTuple):
    """Where the layers of a slice are in the result: below `prefix`, with these numbers; none for what is in no layer.
    `number`: that of the part, by which its aliases are told from others."""

    number: int
    prefix: str
    layers: range

    def alias(self, model: Model) -> str:
        """The alias of what a model has of the part."""
        return f"{model.alias}_part{self.number}"


class StepParts(NamedTuple):
    """A configuration and its models; whole ones, or (`place`) what they have of a slice."""

    config: Config
    models: Mapping[str, Model]
    piece: MergeSlice
    place: SlicePlace | None = None

    def payload(self, to: str) -> Mapping[str, object]:
        """The keys of the step."""
        config = self.config
        base = None if config.base is None else self.alias(config.base)
        given = {
            self.alias(source.model): self.parameters(source)
            for source in self.piece.sources
            if source.model != config.base
        }
        found: dict[str, object] = {"method": config.method}
        found |= {} if base is None else {"base": base}
        found["models"] = self.short(given)
        levels = (self.piece.parameters, config.parameters)
        names = dict.fromkeys(name for level in levels for name in level)
        general = self.values({name: tuple(c for level in levels for c in level.get(name, ())) for name in names})
        if "rescale" in PARAMETERS[config.method]:  # mergekit knows no other factor, and takes it if nothing is said
            general["rescale"] = "l1" if general.get("rescale", True) else "no"
        found |= {"parameters": general} if general else {}
        dtype = config.out_dtype or config.dtype
        return found | {"to": to} | ({"dtype": dtype} if dtype else {})

    def alias(self, model: str) -> str:
        return self.models[model].alias if self.place is None else self.place.alias(self.models[model])

    def parameters(self, source: MergeSource) -> dict[str, object]:
        return self.values(source.parameters)

    def short(self, given: Mapping[str, dict[str, object]]) -> object:
        """The models as a list, or with their weights alone, where that says all."""
        if not any(given.values()):
            return list(given)
        numbers = {alias: own.get("weight") for alias, own in given.items()}
        if all(own.keys() == {"weight"} for own in given.values()) and all(
            isinstance(x, int | float) for x in numbers.values()
        ):
            return numbers
        return dict(given)

    def values(self, settings: Mapping[str, Setting]) -> dict[str, object]:
        return {NAMES.get(name, name): self.value(setting, name) for name, setting in settings.items()}

    def value(self, setting: Setting, name: str) -> object:
        """A number, or a mapping of patterns to numbers and to lists by layer, which are about tensors in layers."""
        first = setting[0]
        if first.filter is None and len(first.values) == 1:
            return _number(first.values[0], name)
        found: dict[str, object] = {}
        if self.place is not None:
            for pattern, number in self.by_layer(setting, name, self.place):
                found.setdefault(pattern, number)
            return found.get(".*") if len(found) == 1 and ".*" in found else found
        for condition in setting:
            pattern = ".*" if condition.filter is None else f".*{re.escape(condition.filter)}.*"
            numbers = [_number(x, name) for x in condition.values]
            if len(numbers) > 1 and condition.filter is None:
                found.setdefault(f"{re.escape(self.first.stack.prefix)}\\..*", numbers)
            found.setdefault(pattern, numbers if len(numbers) > 1 and condition.filter else numbers[0])
            if condition.filter is None:
                break
        return found

    def by_layer(self, setting: Setting, name: str, place: SlicePlace) -> Iterator[tuple[str, object]]:
        """Patterns and their values, lists by the layers of a slice being spelt out; the first that matches counts."""
        for condition in setting:
            pattern = ".*" if condition.filter is None else f".*{re.escape(condition.filter)}.*"
            first, *more = condition.values
            if more and place.layers:
                for at, layer in enumerate(place.layers):
                    own = between(condition.values, depth_of(at, len(place.layers)))
                    yield f"{re.escape(place.prefix)}\\.{layer}\\.{pattern}", _number(own, name)
            else:
                yield pattern, _number(first, name)
            if condition.filter is None:
                return

    @property
    def first(self) -> Model:
        return next(iter(self.models.values()))


def _number(value: float, name: str) -> object:
    if name in SWITCHES:
        return bool(value)
    return int(value) if float(value).is_integer() else value
