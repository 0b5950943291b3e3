"""The step `merge` for the methods of a configuration that are no linear combination."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from brainsurgery_jax.importers.merge_models import Model, refuse
from brainsurgery_jax.importers.mergekit_config import NAMES, PARAMETERS, SWITCHES, Config, MergeSource, Setting


class StepParts(NamedTuple):
    """A configuration and its models."""

    config: Config
    models: Mapping[str, Model]

    def payload(self, to: str) -> Mapping[str, object]:
        """The keys of the step. Raises PlanError."""
        config = self.config
        if config.sliced:
            source = config.slices[0].sources[0]
            message = f"slices of {config.method} cannot be imported, only whole models"
            hint = "Write it by hand: `copy` the layers of each model to an alias of its own, then `merge` these."
            raise refuse(message, source.span, hint)
        base = None if config.base is None else self.models[config.base].alias
        given = {
            self.models[source.model].alias: self.parameters(source)
            for source in config.slices[0].sources
            if source.model != config.base
        }
        found: dict[str, object] = {"method": config.method}
        found |= {} if base is None else {"base": base}
        found["models"] = self.short(given)
        general = self.values(config.parameters)
        if "rescale" in PARAMETERS[config.method]:  # mergekit knows no other factor, and takes it if nothing is said
            general["rescale"] = "l1" if general.get("rescale", True) else "no"
        found |= {"parameters": general} if general else {}
        dtype = config.out_dtype or config.dtype
        return found | {"to": to} | ({"dtype": dtype} if dtype else {})

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
        for condition in setting:
            pattern = ".*" if condition.filter is None else f".*{re.escape(condition.filter)}.*"
            numbers = [_number(x, name) for x in condition.values]
            if len(numbers) > 1 and condition.filter is None:
                found.setdefault(f"{re.escape(self.first.stack.prefix)}\\..*", numbers)
            found.setdefault(pattern, numbers if len(numbers) > 1 and condition.filter else numbers[0])
            if condition.filter is None:
                break
        return found

    @property
    def first(self) -> Model:
        return next(iter(self.models.values()))


def _number(value: float, name: str) -> object:
    if name in SWITCHES:
        return bool(value)
    return int(value) if float(value).is_integer() else value
