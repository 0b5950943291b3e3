"""Tensors by their names without numbers: what a table of names is held against, a few hundred for any model."""

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
    """Tensors whose names differ in their numbers alone: the first of each shape and kind, and the numbers of all."""

    first: dict[Aval, str] = field(default_factory=dict)
    numbers: dict[tuple[int, ...], str] = field(default_factory=dict)


def kin_of(avals: Mapping[str, Aval]) -> dict[str, Kin]:
    """The tensors by their names with `*` in the place of numbers."""
    found: dict[str, Kin] = {}
    for name, aval in avals.items():
        numbers = NUMBER.findall(name)
        starred = NUMBER.sub("*", name) if numbers else name
        if (kin := found.get(starred)) is None:
            kin = found[starred] = Kin()
        kin.first.setdefault(aval, name)
        kin.numbers[tuple(map(int, numbers))] = name
    return found


def spelled(text: str) -> Iterator[str]:
    """The names that a text with braces stands for."""
    if (braces := _BRACES.search(text)) is None:
        yield text
        return
    for word in braces[1].split(","):
        yield from spelled(text[: braces.start()] + word + text[braces.end() :])
