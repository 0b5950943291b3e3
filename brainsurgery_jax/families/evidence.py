"""Evidence for a family's sizes: axes whose size is a formula, and numbered modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.model import Family, FamilyPlace
from brainsurgery_jax.families.names import Kin, expand_braces
from brainsurgery_jax.layout.expressions import Config, SizeExpression, parse_expression

UNKNOWN = "_"
"""Any size."""


class Observation(NamedTuple):
    """A number that one of the formulas should equal: the size of an axis, or (axis None) a count of modules. `about`:
    a clause that names a tensor as evidence."""

    formulas: tuple[SizeExpression, ...]
    found: int
    axis: int | None
    about: str

    @property
    def dims(self) -> frozenset[str]:
        """The dims in the formulas."""
        return frozenset().union(*(f.names for f in self.formulas))


@lru_cache(maxsize=1024)
def formula(text: str) -> SizeExpression:
    """Parse a formula of the table."""
    return parse_expression(text)


@lru_cache(maxsize=64)
def shape_table(family: Family) -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """The shapes of a family's tensors by their names, each with its alternatives."""
    return {
        name: tuple(tuple(shape.split()) for shape in text.split("|"))
        for names, text in family.shapes.items()
        for name in expand_braces(names)
    }


class Sizes(NamedTuple):
    """The values of a family's dims; None for one that the config does not determine."""

    values: Mapping[str, int | None]

    def of(self, f: SizeExpression) -> int | None:
        """The value of a formula over dims."""
        return None if any(self.values[name] is None for name in f.names) else _number(f, self.values)

    def agrees(self, seen: Observation) -> bool:
        """Whether a formula has the observed value, or no formula has a value."""
        known = [value for f in seen.formulas if (value := self.of(f)) is not None]
        return not known or seen.found in known

    def assuming(self, dim: str, value: int) -> Sizes:
        """The same with another value for one dim."""
        return Sizes({**self.values, dim: value})


def sizes_of(family: Family, config: Config) -> Sizes:
    """The dims of a family for a config."""
    return Sizes({dim: _first_known(texts, config) for dim, texts in family.dims.items()})


def _first_known(texts: Iterable[str], config: Config) -> int | None:
    text = _in_force(texts, config)
    return None if text is None else _number(formula(text), config)


def _in_force(texts: Iterable[str], config: Config) -> str | None:
    """The first formula whose keys a config has."""
    return next((t for t in texts if all(type(config.get(name)) is int for name in formula(t).names)), None)


def keys_of(family: Family, dim: str, config: Config) -> list[str]:
    """The keys that set a dim: the one in force, then those with precedence over it."""
    texts = family.dims[dim]
    if (text := _in_force(texts, config)) is None:
        return []
    ranked = [text, *texts[: texts.index(text)]]
    return [t for t in ranked if formula(t).names == {t}]


def is_divided(family: Family, dim: str, config: Config) -> bool:
    """Whether the formula for a dim in this config divides without a rest, if it divides at all."""
    text = _in_force(family.dims[dim], config)
    return text is None or "//" not in text or _number(formula(text.replace("//", "%")), config) == 0


def key_text(family: Family, dim: str, config: Config) -> str:
    """The key or formula for a dim in this config."""
    text = _in_force(family.dims[dim], config) or family.dims[dim][0]
    return f"({text})" if " " in text else text


def _number(f: SizeExpression, given: Mapping[str, Any]) -> int | None:
    try:
        value = f.value(given)
    except Refusal:
        return None
    return value if type(value) is int else None


class Modules(NamedTuple):
    """Numbered modules: the dim that counts them, the start of their names, and one tensor of each by its number."""

    dim: str
    head: str
    tensors: Mapping[int, str]


def modules_of(family: Family, base: str, kin: Mapping[str, Kin]) -> Iterator[Modules]:
    """The numbered modules of a family; those inside other modules once for each of these."""
    for dim, places in family.counts.items():
        for place in places:
            for around, tensors in _modules_at(base + place, kin).items():
                yield Modules(dim, _fill(base + place, around), tensors)


def _modules_at(place: str, kin: Mapping[str, Kin]) -> dict[tuple[int, ...], dict[int, str]]:
    """The modules at a place, by the numbers in front: one tensor of each, by its number."""
    head = place.replace("#", "*") + "."
    at = place.count("*")
    found: dict[tuple[int, ...], dict[int, str]] = {}
    for starred, group in kin.items():
        if starred.startswith(head):
            for numbers, name in group.numbers.items():
                found.setdefault(numbers[:at], {}).setdefault(numbers[at], name)
    return found


def _fill(place: str, around: Iterable[int]) -> str:
    """A place with its numbers filled in, up to the number that counts."""
    for number in around:
        place = place.replace("*", str(number), 1)
    return place.removesuffix("#")


def observe(place: FamilyPlace, kin: Mapping[str, Kin], modules: Iterable[Modules]) -> Iterator[Observation]:
    """The evidence of the tensors at a place."""
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
        yield Observation((counted,), len(each.tensors), None, f"the last is that of '{last}'")


def _axes(shapes: tuple[tuple[str, ...], ...], group: Kin) -> Iterator[Observation]:
    for aval, name in group.first.items():
        fitting = [shape for shape in shapes if len(shape) == len(aval.shape)]
        if not aval.dtype.is_float or not fitting:
            continue
        for axis, size in enumerate(aval.shape):
            texts = dict.fromkeys(shape[axis] for shape in fitting)
            if UNKNOWN not in texts:
                yield Observation(tuple(map(formula, texts)), size, axis, f"'{name}' is {aval}")
