"""Two sets of names that differ in what all of them begin with: one mistake, whatever the number of names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple


class Shift(NamedTuple):
    """What names begin with, and what stands in its place in the names that are wanted; either may be empty."""

    drop: str
    add: str

    def renamed(self, name: str) -> str:
        """The name with the other prefix."""
        return self.add + name[len(self.drop) :]

    @property
    def step(self) -> str:
        """The step of a plan that renames so."""
        return f"- move: {{from: '{re.escape(self.drop)}(.+)', to: '{self.add}\\1'}}"


def shift_between(names: Collection[str], wanted: Collection[str]) -> Shift | None:
    """The change of prefix that makes most of the names wanted ones; None where some are so already, or too few would
    be."""
    goal = set(wanted)
    if not names or not goal or any(name in goal for name in names):
        return None
    shifts = (Shift(drop, add) for drop in _common(names) for add in _common(goal))
    best = max(shifts, key=lambda shift: _fitting(shift, names, goal))
    return best if 2 * _fitting(best, names, goal) > min(len(names), len(goal)) else None


def _fitting(shift: Shift, names: Iterable[str], goal: set[str]) -> int:
    return sum(shift.renamed(name) in goal for name in names)


def _common(names: Iterable[str]) -> Iterator[str]:
    """The prefixes that all names have, each ending in a dot; the empty one first."""
    yield ""
    first, *rest = names
    for dot in re.finditer(r"\.", first):
        prefix = first[: dot.end()]
        if all(name.startswith(prefix) for name in rest):
            yield prefix
