"""Buffer donation: operands that compiled code may overwrite, because nothing needs them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol, TypeVar

from brainsurgery_jax._lazy import Array, jax
from brainsurgery_jax.engine.compute.kernels import precise
from brainsurgery_jax.engine.compute.ladder import attempt
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.op import Outcome, Rung

A = TypeVar("A")

Donated = frozenset[int]
"""Positions of the operands that are donated."""

Parts = Mapping[int, Array]
"""Some of the operands of a call, by position."""

OfParts = Callable[[Parts, Parts, Mapping[str, object], object], Outcome]
"""A rung as a function of split operands: `f(donated, kept, numbers, state)`."""


class Donating(Protocol):
    """A compiled rung. A call consumes the operands at the positions `donated`."""

    def __call__(
        self, arrays: Sequence[Array], numbers: Mapping[str, object], state: object, donated: Donated = frozenset()
    ) -> Outcome: ...


def donated(e: Expr, rung: Rung, rungs: Sequence[Rung]) -> Donated:
    """The operands whose buffers can be reused for results of the same shape and dtype. Only the last rung donates:
    after the other rungs the operands may be needed again."""
    chosen: set[int] = set()
    for aval in e.avals if rung is rungs[-1] else ():
        at = next((i for i, s in enumerate(e.srcs) if s.aval == aval and i not in chosen), None)
        chosen |= set() if at is None else {at}
    return frozenset(chosen)


def split(arrays: Sequence[A], donated: Donated) -> tuple[dict[int, A], dict[int, A]]:
    """Split operands into donated and kept ones, by position."""
    numbered = dict(enumerate(arrays))
    return {i: x for i, x in numbered.items() if i in donated}, {i: x for i, x in numbered.items() if i not in donated}


def join(given: Mapping[int, A], kept: Mapping[int, A]) -> list[A]:
    """Join operands that were split, in their original order."""
    operands = {**given, **kept}
    return [operands[i] for i in range(len(operands))]


def attempt_of_parts(rung: Rung) -> OfParts:
    """A rung as a function of split operands: `f(donated, kept, numbers, state) -> Outcome`."""
    whole = precise(attempt(rung))

    def of_parts(given: Parts, kept: Parts, numbers: Mapping[str, object], state: object) -> Outcome:
        return whole(join(given, kept), numbers, state)

    return of_parts


def donating(of_parts: OfParts) -> Donating:
    """Compile such a function: `f(arrays, numbers, state, donated)`. A call consumes the donated operands."""
    compiled = jax.jit(of_parts, donate_argnums=0)

    def call(
        arrays: Sequence[Array], numbers: Mapping[str, object], state: object, donated: Donated = frozenset()
    ) -> Outcome:
        return compiled(*split(arrays, donated), numbers, state)

    return call


@lru_cache(maxsize=4096)
def compile_rung(rung: Rung) -> Donating:
    """Compile a rung: `f(arrays, numbers, state, donated) -> Outcome`."""
    return donating(attempt_of_parts(rung))
