"""Which steps of a plan made each tensor: followed from state to state while the plan is lowered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.state import State

Key = tuple[str, str]
"""An alias, and a name in it."""


class Origins:
    """The numbers of the steps that each tensor went through, by its alias and name.

    Call it with the state before the first step, then with that after each. Expressions are interned: what a step made
    of a tensor has it among its operands, and what a step only renamed is the same expression under another name.
    """

    def __init__(self) -> None:
        self._tensors: dict[Key, Expr] = {}
        self._steps: dict[Key, tuple[int, ...]] = {}
        self._held: dict[Expr, list[Key]] = {}
        self._number = -1

    def __call__(self, state: State) -> None:
        """Note the state after the next step."""
        self._held = {}
        now = {(alias, name): e for alias, space in state.spaces.items() for name, e in space.names.items()}
        held: dict[Expr, list[Key]] = {}
        for key, e in self._tensors.items():
            held.setdefault(e, []).append(key)
        steps: dict[Key, tuple[int, ...]] = {}
        for key, e in now.items():
            if self._tensors.get(key) is e:
                steps[key] = self._steps[key]
            elif self._number < 0:
                steps[key] = ()
            else:
                found = [number for source in _sources(key, e, held, now) for number in self._steps[source]]
                steps[key] = tuple(sorted({*found, self._number}))
        self._tensors, self._steps = now, steps
        self._number += 1

    def steps_of(self, name: str, expr: Expr) -> tuple[int, ...]:
        """The steps, counted from 0, that a tensor went through which is written under a name."""
        if not self._held:
            for key, e in self._tensors.items():
                self._held.setdefault(e, []).append(key)
        keys = self._held.get(expr, ())
        key = next((key for key in keys if key[1] == name), keys[0] if keys else None)
        return () if key is None else self._steps[key]


def _sources(key: Key, e: Expr, held: Mapping[Expr, list[Key]], now: Mapping[Key, Expr]) -> Iterator[Key]:
    """The tensors before a step that an expression after it, at `key`, is made of, or is."""
    stack, seen = [e], set[Expr]()
    while stack:
        node = stack.pop()
        if node in held:
            yield _choose(key, held[node], now)
        elif node not in seen:
            seen.add(node)
            stack.extend(node.srcs)


def _choose(key: Key, keys: Sequence[Key], now: Mapping[Key, Expr]) -> Key:
    """Of tensors with one value, the one that had the same name; else one that is gone, since it was renamed."""
    return key if key in keys else next((other for other in keys if other not in now), keys[0])
