"""Trees of an optimizer's state that are shaped like the weights: first and second moments, as optax stores them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

POWERS = {"mu": -1, "nu": -2}
"""The power of a factor on the weights in the moments of their gradients."""

OPTIMIZER = ("opt_state", "step")
"""The first words of names in a training state that do not belong to weights."""


class MomentTree(NamedTuple):
    """A tree of tensors like the weights. `head` replaces the target's prefix in its names, on both sides."""

    head: str
    power: int

    def target(self, name: str, prefix: str) -> str:
        """The name in this tree of the target's `name`."""
        return self.head + name.removeprefix(prefix) if self.head else name


WEIGHTS = MomentTree("", 1)


def moment_trees(names: Iterable[str], known: Collection[str], prefix: str) -> Iterator[MomentTree]:
    """The trees of moments among names, in order of first occurrence.

    `known`: the names in such a tree, below `prefix`. Between `mu` and these names, part of the prefix may appear.
    """
    wanted = frozenset(n.removeprefix(f"{prefix}.") if prefix else n for n in known)
    found: dict[MomentTree, None] = {}
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part in POWERS:
                start = next((i for i in range(at + 1, len(parts)) if ".".join(parts[i:]) in wanted), None)
                if start is not None:
                    found[MomentTree(".".join(parts[:start]) + ".", POWERS[part])] = None
                    break
    yield from found
