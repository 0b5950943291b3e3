"""Tensors by their names without numbers, to compare with a table of names: a few hundred for any model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from brainsurgery_jax.dtypes import Aval

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a name that is a number."""

_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Kin:
    """Tensors whose names differ in numbers only: the first one of each shape and dtype, and the numbers of all."""

    first: dict[Aval, str] = field(default_factory=dict)
    numbers: dict[tuple[int, ...], str] = field(default_factory=dict)


def kin_of(avals: Mapping[str, Aval]) -> dict[str, Kin]:
    """Tensors by their names, with `*` in place of numbers."""
    found: dict[str, Kin] = {}
    for name, aval in avals.items():
        numbers = NUMBER.findall(name)
        starred = NUMBER.sub("*", name) if numbers else name
        if (kin := found.get(starred)) is None:
            kin = found[starred] = Kin()
        kin.first.setdefault(aval, name)
        kin.numbers[tuple(map(int, numbers))] = name
    return found


def expand_braces(text: str) -> Iterator[str]:
    """The names that a text with braces expands to."""
    if (braces := _BRACES.search(text)) is None:
        yield text
        return
    for word in braces[1].split(","):
        yield from expand_braces(text[: braces.start()] + word + text[braces.end() :])
