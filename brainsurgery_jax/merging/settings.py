"""The parameters of a merge: one number for all, or by model, by pattern of names, or by depth of layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from sys import float_info
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.select import compile_pattern

Plain = float | bool | str
Given = Plain | Sequence[float] | Mapping[str, "Given"]
"""A value as a plan says it: a list goes from the first layer to the last, a mapping has patterns of names."""

_EMBEDDING = re.compile(r"(^|[._/])(\w*embed\w*|wte|wpe|token\w*|word\w*)([._/]|$)")
"""Names of tables, which come before the first layer; all else that is in no layer comes after the last."""

_NUMBER = re.compile(r"(?:^|[./])(?:\w*(?:layers?|blocks?|h)_)?(\d+)(?=[._/]|$)", re.IGNORECASE)
"""The number of a layer, alone or after its word (`layers_3`): a matrix may have one, too (`wi_0`)."""


_KINDS = {bool: "true or false", str: "a word", float: "a number"}
"""What parameters take, in words."""


class MergeParameter(NamedTuple):
    """A parameter of a method. `default` None: it must be given. `each`: every model may have its own."""

    default: Plain | None
    doc: str
    each: bool = False
    low: float = -inf
    high: float = inf

    @property
    def kind(self) -> type[bool] | type[str] | type[float]:
        """What it takes: true or false, a word, or a number, which may go by layer."""
        return type(self.default) if isinstance(self.default, bool | str) else float

    def takes(self, value: object) -> bool:
        """Whether a value is of that kind."""
        known = int | float if self.kind is float else self.kind
        return isinstance(value, known) and (self.kind is bool or not isinstance(value, bool))

    @property
    def wanted(self) -> str:
        """What it takes, in words."""
        return self.span if self.kind is float else _KINDS[self.kind]

    @property
    def span(self) -> str:
        """What numbers it takes, in words."""
        if self.high < inf:
            return f"a number from {self.low:g} to {self.high:g}"
        return "a finite number" if self.low == -inf else f"a finite number from {self.low:g} on"


@dataclass(frozen=True)
class Settings:
    """What a step says of the parameters of its method: for all models, and for each."""

    method: str
    parameters: Mapping[str, MergeParameter]
    general: Mapping[str, Given]
    own: Mapping[str, Mapping[str, Given]]
    depths: Mapping[str, float] = field(default_factory=dict)
    """From 0 for the first layer to 1 for the last, by name of a tensor."""
    has_layers: bool = True
    """Whether any name of the model has the number of a layer, or is of a tensor that holds all layers."""

    def value(self, parameter: str, name: str, model: str = "") -> Plain:
        """The value of a parameter for a tensor, of a model or of all. Raises Refusal."""
        known, own = self.parameters[parameter], self.own.get(model, {})
        for key, level in (("models", own), ("parameters", self.general)):
            if (found := self._resolve(level.get(parameter), parameter, name, key)) is not None:
                return found
        if known.default is None:
            raise self._missing(parameter, name, model)
        return known.default

    def _missing(self, parameter: str, name: str, model: str) -> Refusal:
        """That a parameter without a default has no value for a tensor."""
        known = self.parameters[parameter]
        of = f" of '{model}'" if known.each else ""
        message = f"{self.method} needs a {parameter}{of} for '{name}': {known.doc}"
        for key, level in (("parameters", self.general), ("models", self.own.get(model, {}))):
            if isinstance(level.get(parameter), Mapping):
                hint = f"Add a last pattern for all names to `{parameter}`: `'.*': 0.5`, with a value of your own."
                return Refusal("merge-parameter", message, key=key, hint=hint)
        hint = f"Add `parameters: {{{parameter}: 0.5}}`, with a value of your own."
        return Refusal("merge-parameter", message, key="models" if known.each else "method", hint=hint)

    def patterns(self) -> Iterator[tuple[str, str]]:
        """Every pattern of names, with the key of the step under which it stands."""
        for key, level in (("parameters", self.general), *(("models", own) for own in self.own.values())):
            for given in level.values():
                yield from ((pattern, key) for pattern in _patterns_in(given))

    def mistakes(self) -> Iterator[Refusal]:
        """What is wrong in the step, whatever the tensors are."""
        each = {name: known for name, known in self.parameters.items() if known.each}
        yield from _mistakes_in(self.general, self.parameters, self.method, "parameters")
        for own in self.own.values():
            yield from _mistakes_in(own, each, f"a model of {self.method}", "models")

    def is_by_layer(self, name: str) -> bool:
        """Whether any parameter of a tensor is a list with several values."""
        given = (v for level in (self.general, *self.own.values()) for v in level.values())
        return any(isinstance(v, Sequence) and not isinstance(v, str) and len(set(v)) > 1
                   for v in (_of_name(v, name) for v in given))  # fmt: skip

    def has_lists(self) -> bool:
        """Whether any parameter is a list with several values, for all names or for some."""
        given = [v for level in (self.general, *self.own.values()) for v in level.values()]
        for value in given:
            if isinstance(value, Mapping):
                given.extend(value.values())
            elif isinstance(value, Sequence) and not isinstance(value, str) and len(set(value)) > 1:
                return True
        return False

    def at_depth(self, name: str, depth: float) -> Settings:
        """The settings of a layer of a tensor that holds all of them."""
        return replace(self, depths={name: depth})

    def _resolve(self, given: Given | None, parameter: str, name: str, key: str) -> Plain | None:
        given = _of_name(given, name)
        if given is None or isinstance(given, str | bool | int | float):
            return given
        if len(set(given)) > 1 and not self.has_layers:
            message = f"'{parameter}' is a list by layer, and no name has the number of a layer"
            raise Refusal("merge-parameter", message, key=key, hint="Give one number; or `unstack` the layers of each "
                          "model before.")  # fmt: skip
        return between(given, self.depths.get(name, 0.0))


def _mistakes_in(
    given: Mapping[str, object], parameters: Mapping[str, MergeParameter], method: str, key: str
) -> Iterator[Refusal]:
    """Parameters that a method does not have, and values that a parameter does not take."""
    for name, value in given.items():
        if name in parameters:
            yield from _mistakes_of(name, value, parameters[name], key)
        else:
            known = ", ".join(parameters) or "none"
            yield Refusal("merge-parameter", f"{method} has no parameter '{name}'.{did_you_mean(name, parameters)}",
                          key=key, hint=f"Its parameters: {known}.")  # fmt: skip


def _mistakes_of(name: str, value: object, known: MergeParameter, key: str) -> Iterator[Refusal]:
    """What is wrong with a value, or with those of a list or a mapping."""
    match value:
        case None:
            message = f"'{name}' has no value: it is {known.wanted}"
            yield Refusal("merge-parameter", message, key=key, hint=f"{name}: {known.doc}. Give it a value, or leave "
                          "it out.")  # fmt: skip
        case Mapping():
            for one in value.values():
                yield from _mistakes_of(name, one, known, key)
        case str() | bool() | int() | float():
            if (bad := _mistake_of_one(name, value, known, key)) is not None:
                yield bad
        case list() | tuple() if value and known.kind is float:
            yield from filter(None, (_mistake_of_one(name, one, known, key) for one in value))
        case _ if known.kind is float:
            message = f"'{name}' is a number, a list of numbers, or a mapping of patterns"
            hint = "A list goes from the first layer to the last: `[0, 0.5, 1]`."
            yield Refusal("merge-parameter", message, key=key, hint=hint)
        case _:
            message = f"'{name}' is {_KINDS[known.kind]}, or a mapping of patterns"
            yield Refusal("merge-parameter", message, key=key, hint=f"{name}: {known.doc}.")


def _mistake_of_one(name: str, value: object, known: MergeParameter, key: str) -> Refusal | None:
    """What is wrong with a value that stands alone."""
    if not known.takes(value):
        message, hint = f"'{name}' is {_KINDS[known.kind]}, got {value!r}", f"{name}: {known.doc}."
        if known.kind is bool:
            hint = f"{name}: {known.doc}. Write `{name}: true` or `{name}: false`."
        return Refusal("merge-parameter", message, key=key, hint=hint)
    if isinstance(value, int | float) and not (known.low <= value <= known.high and abs(value) <= float_info.max):
        message, hint = f"'{name}' is {known.span}, got {_shown(value)}", f"{name}: {known.doc}. Give {known.span}."
        return Refusal("merge-parameter", message, key=key, hint=hint)
    return None


def _shown(value: float) -> str:
    """A number, as short as can be; integers may be larger than any float."""
    return f"{value:g}" if abs(value) <= float_info.max or isinstance(value, float) else "an integer beyond all floats"


def _patterns_in(given: object) -> Iterator[str]:
    """The patterns of a mapping, and of those within it."""
    if isinstance(given, Mapping):
        for pattern, value in given.items():
            yield pattern
            yield from _patterns_in(value)


def depths_of(names: Sequence[str]) -> dict[str, float]:
    """The relative depth of each tensor, by the first number in its name. What is in no layer is at the begin if it is
    a table of embeddings, else at the end."""
    places = {name: layer_of(name) for name in names}
    last: dict[str, int] = {}
    for stack, number in filter(None, places.values()):
        last[stack] = max(last.get(stack, 0), number)
    found = {}
    for name, place in places.items():
        if place is None:
            found[name] = 0.0 if _EMBEDDING.search(name) else 1.0
        else:
            found[name] = depth_of(place[1], last[place[0]] + 1)
    return found


def depth_of(layer: int, count: int) -> float:
    """The relative depth of a layer of so many. One alone is the last, as it is in mergekit."""
    return layer / (count - 1) if count > 1 else 1.0


def _of_name(given: Given | None, name: str) -> Plain | Sequence[float] | None:
    """What is given for a name: of a mapping, what its first pattern that matches says."""
    while isinstance(given, Mapping):
        given = next((v for pattern, v in given.items() if compile_pattern(pattern).match(name) is not None), None)
    return given


def layer_of(name: str) -> tuple[str, int] | None:
    """The stack of layers that a tensor belongs to, and its number in it."""
    found = _NUMBER.search(name)
    return None if found is None else (name[: found.start(1)], int(found[1]))


def between(values: Sequence[float], depth: float) -> float:
    """The value at a depth, where values stand at equal distances from 0 to 1."""
    place = depth * (len(values) - 1)
    at = min(int(place), len(values) - 2) if len(values) > 1 else 0
    if len(values) == 1 or place == at:
        return float(values[at])
    return values[at] + (place - at) * (values[at + 1] - values[at])
