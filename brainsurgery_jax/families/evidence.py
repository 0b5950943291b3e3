"""What tensors say of a family's sizes: axes that should have the size of a formula, modules that are numbered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.model import Family, Place
from brainsurgery_jax.families.names import Kin, spelled
from brainsurgery_jax.layout.expressions import Expression, parse_expression

UNKNOWN = "_"
"""A size of which nothing is known."""


class Seen(NamedTuple):
    """What was found where a formula (one of them) should give it: the size of an axis, or (None) a count of modules.
    `about` is a clause that names a tensor that shows it."""

    formulas: tuple[Expression, ...]
    found: int
    axis: int | None
    about: str

    @property
    def dims(self) -> frozenset[str]:
        """The dims that the formulas ask for."""
        return frozenset().union(*(f.names for f in self.formulas))


@lru_cache(maxsize=1024)
def formula(text: str) -> Expression:
    """The formula that a text of the table spells."""
    return parse_expression(text)


@lru_cache(maxsize=64)
def shape_table(family: Family) -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """The shapes of a family's tensors by their names, each with its alternatives."""
    return {
        name: tuple(tuple(shape.split()) for shape in text.split("|"))
        for names, text in family.shapes.items()
        for name in spelled(names)
    }


class Sizes(NamedTuple):
    """The values of a family's dims; None for one that the config does not tell."""

    values: Mapping[str, int | None]

    def of(self, f: Expression) -> int | None:
        """The value of a formula over dims."""
        return None if any(self.values[name] is None for name in f.names) else _number(f, self.values)

    def agrees(self, seen: Seen) -> bool:
        """Whether a formula gives what was found, or none of them is known."""
        known = [value for f in seen.formulas if (value := self.of(f)) is not None]
        return not known or seen.found in known

    def assuming(self, dim: str, value: int) -> Sizes:
        """The same with another value for one dim."""
        return Sizes({**self.values, dim: value})


def sizes_of(family: Family, config: Mapping[str, Any]) -> Sizes:
    """The dims of a family for a config."""
    return Sizes({dim: _first_known(texts, config) for dim, texts in family.dims.items()})


def _first_known(texts: Iterable[str], config: Mapping[str, Any]) -> int | None:
    text = _in_force(texts, config)
    return None if text is None else _number(formula(text), config)


def _in_force(texts: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The first formula whose keys a config has."""
    return next((t for t in texts if all(type(config.get(name)) is int for name in formula(t).names)), None)


def keys_of(family: Family, dim: str, config: Mapping[str, Any]) -> list[str]:
    """The keys that set a dim: the one in force, then those that would come before it."""
    texts = family.dims[dim]
    if (text := _in_force(texts, config)) is None:
        return []
    ranked = [text, *texts[: texts.index(text)]]
    return [t for t in ranked if formula(t).names == {t}]


def key_text(family: Family, dim: str, config: Mapping[str, Any]) -> str:
    """A dim in the words of the config."""
    text = _in_force(family.dims[dim], config) or family.dims[dim][0]
    return f"({text})" if " " in text else text


def _number(f: Expression, given: Mapping[str, Any]) -> int | None:
    try:
        value = f.value(given)
    except Refusal:
        return None
    return value if type(value) is int else None


class Modules(NamedTuple):
    """Numbered modules: the dim that counts them, what their names begin with, and a tensor of each by its number."""

    dim: str
    head: str
    tensors: Mapping[int, str]


def modules_of(family: Family, base: str, kin: Mapping[str, Kin]) -> Iterator[Modules]:
    """The numbered modules of a family, those within others once for each."""
    for dim, places in family.counts.items():
        for place in places:
            for around, tensors in _numbered(base + place, kin).items():
                yield Modules(dim, _filled(base + place, around), tensors)


def _numbered(place: str, kin: Mapping[str, Kin]) -> dict[tuple[int, ...], dict[int, str]]:
    """The modules at a place by their numbers, a tensor of each; by the numbers in front of those."""
    head = place.replace("#", "*") + "."
    at = place.count("*")
    found: dict[tuple[int, ...], dict[int, str]] = {}
    for starred, group in kin.items():
        if starred.startswith(head):
            for numbers, name in group.numbers.items():
                found.setdefault(numbers[:at], {}).setdefault(numbers[at], name)
    return found


def _filled(place: str, around: Iterable[int]) -> str:
    """A place with its numbers, up to the one that counts."""
    for number in around:
        place = place.replace("*", str(number), 1)
    return place.removesuffix("#")


def seen(place: Place, kin: Mapping[str, Kin], modules: Iterable[Modules]) -> Iterator[Seen]:
    """What the tensors at a place say."""
    table = shape_table(place.family)
    starts = ((place.base, ""), (place.prefix, "^"), ("", "^"))
    for starred, group in kin.items():
        names = (mark + starred[len(start) :] for start, mark in starts if starred.startswith(start))
        shapes = next((table[name] for name in names if name in table), None)
        if shapes is not None:
            yield from _axes(shapes, group)
    for each in modules:
        text, mark = place.family.longer.get(each.dim, (each.dim, ""))
        counted = formula(text if place.base + mark in kin else each.dim)
        last = each.tensors[max(each.tensors)]
        yield Seen((counted,), len(each.tensors), None, f"the last is that of '{last}'")


def _axes(shapes: tuple[tuple[str, ...], ...], group: Kin) -> Iterator[Seen]:
    for aval, name in group.first.items():
        fitting = [shape for shape in shapes if len(shape) == len(aval.shape)]
        if aval.dtype.kind != "float" or not fitting:
            continue
        for axis, size in enumerate(aval.shape):
            texts = dict.fromkeys(shape[axis] for shape in fitting)
            if UNKNOWN not in texts:
                yield Seen(tuple(map(formula, texts)), size, axis, f"'{name}' is {aval}")
