"""Which entries of an axis belong to a unit, such as a head: an axis is a sum of parts, a part a product of factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from brainsurgery_jax.families.evidence import Sizes, formula


class Section(NamedTuple):
    """A part of an axis: where it starts, and the factors of its size, the slowest first, with their values."""

    start: int
    factors: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its entries."""
        return prod(self.counts)

    @property
    def stop(self) -> int:
        """Where the next part starts."""
        return self.start + self.size


def sections(text: str, sizes: Sizes) -> tuple[Section, ...]:
    """The parts of an axis, one after another."""
    found: list[Section] = []
    start = 0
    for summand in _split(text, "+"):
        factors = tuple(_split(summand, "*"))
        counts = [sizes.of(formula(factor)) for factor in factors]
        assert None not in counts, text
        found.append(Section(start, factors, tuple(n for n in counts if n is not None)))
        start = found[-1].stop
    return tuple(found)


def _split(text: str, at: str) -> Iterator[str]:
    """A formula, split at an operator outside of parentheses."""
    depth, last = 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == at and not depth:
            yield text[last:place]
            last = place + 1
    yield text[last:]


def entries(text: str, sizes: Sizes, kept: Mapping[str, Sequence[int]]) -> list[int]:
    """The entries of an axis that stay, if of some dims only these numbers do."""
    found: list[int] = []
    for section in sections(text, sizes):
        strides = [prod(section.counts[at + 1 :]) for at in range(len(section.counts))]
        chosen = [kept.get(f, range(n)) for f, n in zip(section.factors, section.counts, strict=True)]
        pairs = (zip(numbers, strides, strict=True) for numbers in product(*chosen))
        found += (section.start + sum(n * stride for n, stride in each) for each in pairs)
    return found
