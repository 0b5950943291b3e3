"""Operands that compiled code may overwrite, because we put them on the device and nobody needs them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from brainsurgery_jax._lazy import jax
from brainsurgery_jax.engine.compute.kernels import Way, attempt, precise
from brainsurgery_jax.graph.expr import Expr

Gifts = frozenset[int]


def gifts(e: Expr, way: Way, tried: Sequence[Way]) -> Gifts:
    """Positions of the operands whose place a result can take, being alike: in the last way that is tried only, since
    the others may be rejected."""
    given: set[int] = set()
    for made in e.avals if way is tried[-1] else ():
        at = next((i for i, s in enumerate(e.srcs) if s.aval == made and i not in given), None)
        given |= set() if at is None else {at}
    return frozenset(given)


def apart(arrays: Sequence[Any], given: Gifts) -> tuple[dict[int, Any], dict[int, Any]]:
    """Operands by position: those given away, and the others."""
    numbered = dict(enumerate(arrays))
    return {i: x for i, x in numbered.items() if i in given}, {i: x for i, x in numbered.items() if i not in given}


def attempt_of_parts(way: Way) -> Callable[..., Any]:
    """A way to make a call of operands that come apart: `f(given, kept, numbers, state)`."""
    whole = precise(attempt(way))

    def of_parts(given: Mapping[int, Any], kept: Mapping[int, Any], numbers: Mapping[str, Any], state: Any) -> Any:
        operands = {**given, **kept}
        return whole([operands[i] for i in range(len(operands))], numbers, state)

    return of_parts


def consuming(of_parts: Callable[..., Any]) -> Callable[..., Any]:
    """Such a function, compiled: `f(arrays, numbers, state, given)`. The operands given away are gone afterwards."""
    compiled = jax.jit(of_parts, donate_argnums=0)

    def call(arrays: Sequence[Any], numbers: Mapping[str, Any], state: Any, given: Gifts = frozenset()) -> Any:
        return compiled(*apart(arrays, given), numbers, state)

    return call


@lru_cache(maxsize=4096)
def consuming_attempt(way: Way) -> Callable[..., Any]:
    """A way to make a call, compiled: `f(arrays, numbers, state, given)`."""
    return consuming(attempt_of_parts(way))
