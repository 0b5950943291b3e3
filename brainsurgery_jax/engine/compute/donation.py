"""Buffer donation: operands that compiled code may overwrite, because nothing needs them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from brainsurgery_jax._lazy import jax
from brainsurgery_jax.engine.compute.kernels import precise
from brainsurgery_jax.engine.compute.ladder import attempt
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.op import Rung

Donated = frozenset[int]
"""Positions of the operands that are donated."""


def donated(e: Expr, rung: Rung, rungs: Sequence[Rung]) -> Donated:
    """The operands whose place a result of the same shape and dtype can take. Only the last rung gets any: after the
    others the operands may be needed again."""
    chosen: set[int] = set()
    for aval in e.avals if rung is rungs[-1] else ():
        at = next((i for i, s in enumerate(e.srcs) if s.aval == aval and i not in chosen), None)
        chosen |= set() if at is None else {at}
    return frozenset(chosen)


def split(arrays: Sequence[Any], donated: Donated) -> tuple[dict[int, Any], dict[int, Any]]:
    """Operands by position: those that are donated, and the others."""
    numbered = dict(enumerate(arrays))
    return {i: x for i, x in numbered.items() if i in donated}, {i: x for i, x in numbered.items() if i not in donated}


def attempt_of_parts(rung: Rung) -> Callable[..., Any]:
    """A rung as a function of split operands: `f(donated, kept, numbers, state) -> Outcome`."""
    whole = precise(attempt(rung))

    def of_parts(given: Mapping[int, Any], kept: Mapping[int, Any], numbers: Mapping[str, Any], state: Any) -> Any:
        operands = {**given, **kept}
        return whole([operands[i] for i in range(len(operands))], numbers, state)

    return of_parts


def donating(of_parts: Callable[..., Any]) -> Callable[..., Any]:
    """Such a function, compiled: `f(arrays, numbers, state, donated)`. Donated operands are gone afterwards."""
    compiled = jax.jit(of_parts, donate_argnums=0)

    def call(arrays: Sequence[Any], numbers: Mapping[str, Any], state: Any, donated: Donated = frozenset()) -> Any:
        return compiled(*split(arrays, donated), numbers, state)

    return call


@lru_cache(maxsize=4096)
def compile_rung(rung: Rung) -> Callable[..., Any]:
    """A rung, compiled: `f(arrays, numbers, state, donated) -> Outcome`."""
    return donating(attempt_of_parts(rung))
