"""The parameters of a merge: one number for all, or by model, by pattern of names, or by depth of layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.select import compile_pattern

Plain = float | bool | str
Given = Plain | Sequence[float] | Mapping[str, "Given"]
"""A value as a plan says it: a list goes from the first layer to the last, a mapping has patterns of names."""

_EMBEDDING = re.compile(r"(^|[._/])(\w*embed\w*|wte|wpe|token\w*|word\w*)([._/]|$)")
"""Names of tables, which come before the first layer; all else that is in no layer comes after the last."""

_LAYERS = re.compile(r"(?:^|[./])(?:\w*layers|\w*blocks|h)(?=[./])", re.IGNORECASE)
"""Words that stand for all layers."""
_NUMBER = re.compile(r"(?:^|[./])(?:\w*(?:layers?|blocks?|h)_)?(\d+)(?=[._/]|$)", re.IGNORECASE)
"""The number of a layer, alone or after its word (`layers_3`): a matrix may have one, too (`wi_0`)."""


class MergeParameter(NamedTuple):
    """A parameter of a method. `default` None: it must be given. `each`: every model may have its own."""

    default: Plain | None
    doc: str
    each: bool = False
    low: float = -inf
    high: float = inf

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
        key = "models" if parameter in own else "parameters"
        given = own.get(parameter, self.general.get(parameter))
        found = None if given is None else self._resolve(given, parameter, name, key)
        if found is None:
            found = known.default
        if found is None:
            of = f" of '{model}'" if known.each else ""
            message = f"{self.method} needs a {parameter}{of} for '{name}': {known.doc}"
            raise Refusal("merge-parameter", message, key="models" if known.each else "method",
                          hint=f"Add `parameters: {{{parameter}: 0.5}}`, with a value of your own.")  # fmt: skip
        return found

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
        return _between(given, self.depths.get(name, 0.0))


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
            pass
        case str() | bool() | int() | float():
            if (bad := _mistake_of_one(name, value, known, key)) is not None:
                yield bad
        case Mapping():
            for one in value.values():
                yield from _mistakes_of(name, one, known, key)
        case list() | tuple() if value and all(isinstance(one, int | float) for one in value):
            found = (_mistake_of_one(name, one, known, key) for one in value)
            yield from filter(None, found)
        case _:
            yield Refusal("merge-parameter", f"'{name}' is a number, a list of numbers, or a mapping of patterns",
                          key=key, hint="A list goes from the first layer to the last: `[0, 0.5, 1]`.")  # fmt: skip


def _mistake_of_one(name: str, value: Plain, known: MergeParameter, key: str) -> Refusal | None:
    if isinstance(known.default, str) != isinstance(value, str):
        wanted = "a word" if isinstance(known.default, str) else "a number"
        return Refusal("merge-parameter", f"'{name}' is {wanted}, got {value!r}", key=key, hint=f"{name}: {known.doc}.")
    if isinstance(value, int | float) and not (known.low <= value <= known.high and isfinite(value)):
        message, hint = f"'{name}' is {known.span}, got {value:g}", f"{name}: {known.doc}. Give {known.span}."
        return Refusal("merge-parameter", message, key=key, hint=hint)
    return None


def depths_of(names: Sequence[str]) -> dict[str, float]:
    """The relative depth of each tensor, by the first number in its name. What is in no layer is at the begin if it is
    a table of embeddings, else at the end."""
    places = {name: _layer(name) for name in names}
    last: dict[str, int] = {}
    for stack, number in filter(None, places.values()):
        last[stack] = max(last.get(stack, 0), number)
    found = {}
    for name, place in places.items():
        if place is None:
            found[name] = 0.0 if _EMBEDDING.search(name) else 1.0
        else:
            found[name] = place[1] / last[place[0]] if last[place[0]] else 0.0
    return found


def has_layers(names: Iterable[str]) -> bool:
    """Whether any name has the number of a layer, or is of a tensor that holds all layers."""
    return any(_layer(name) is not None or stack_of(name) is not None for name in names)


def stack_of(name: str) -> str | None:
    """The stack of which a tensor seems to hold one layer after the other: its name has the word for layers, and no
    number; else None."""
    found = _LAYERS.search(name) if _layer(name) is None else None
    return None if found is None else name[: found.end()]


def layer_axis_of(stack: str, shapes: Iterable[Sequence[int]], counts: Iterable[object]) -> int:
    """The axis of layers, 0 or 1, of all tensors of a stack: the one along which all have one size, and if a config
    says how many layers there are (`counts`), that one. Raises Refusal."""
    shapes, told = list(shapes), set(counts)
    fitting = [at for at in (0, 1) if len({tuple(s[at : at + 1]) for s in shapes}) == 1 and len(shapes[0]) > at]
    known = [at for at in fitting if shapes[0][at] in told] or fitting
    if len(known) == 1:
        return known[0]
    found = "either the first or the second" if known else "neither the first nor the second"
    message = f"a list goes by layer, and the axis of layers of '{stack}' may be {found}: " + ", ".join(
        str(list(s)) for s in dict.fromkeys(map(tuple, shapes[:3]))
    )
    hint = "Say it: `layer_axis: 0`. Or `unstack` the layers of each model before; or give one number."
    raise Refusal("merge-parameter", message, key="parameters", hint=hint)


def _of_name(given: Given | None, name: str) -> Plain | Sequence[float] | None:
    """What is given for a name: of a mapping, what its first pattern that matches says."""
    while isinstance(given, Mapping):
        given = next((v for pattern, v in given.items() if compile_pattern(pattern).match(name) is not None), None)
    return given


def _layer(name: str) -> tuple[str, int] | None:
    """The stack of layers that a tensor belongs to, and its number in it."""
    found = _NUMBER.search(name)
    return None if found is None else (name[: found.start(1)], int(found[1]))


def _between(values: Sequence[float], depth: float) -> float:
    """The value at a depth, where values stand at equal distances from 0 to 1."""
    place = depth * (len(values) - 1)
    at = min(int(place), len(values) - 2) if len(values) > 1 else 0
    if len(values) == 1 or place == at:
        return float(values[at])
    return values[at] + (place - at) * (values[at + 1] - values[at])
