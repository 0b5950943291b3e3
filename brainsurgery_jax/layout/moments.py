"""The trees of an optimizer's state that look like the weights: first and second moments, as optax keeps them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

POWERS = {"mu": -1, "nu": -2}
"""To which power a factor on the weights comes in the moments of their gradients."""

OPTIMIZER = ("opt_state", "step")
"""The first words of names in a training state that are not the weights'."""


class Tree(NamedTuple):
    """A tree of tensors like the weights: what its names begin with on both sides, instead of the target's prefix."""

    head: str
    power: int

    def target(self, name: str, prefix: str) -> str:
        """What the target's `name` is called in this tree."""
        return self.head + name.removeprefix(prefix) if self.head else name


WEIGHTS = Tree("", 1)


def moment_trees(names: Iterable[str], known: Collection[str], prefix: str) -> Iterator[Tree]:
    """The trees of moments among names, in order of first mention. `known` are the names that such a tree holds, below
    `prefix`; between `mu` and these a part of it may stand."""
    wanted = frozenset(n.removeprefix(f"{prefix}.") if prefix else n for n in known)
    found: dict[Tree, None] = {}
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part in POWERS:
                start = next((i for i in range(at + 1, len(parts)) if ".".join(parts[i:]) in wanted), None)
                if start is not None:
                    found[Tree(".".join(parts[:start]) + ".", POWERS[part])] = None
                    break
    yield from found
