"""Climbing the ladder of a call: rungs are tried in turn until one accepts its own result.

A kernel without a ladder has one rung, the kernel itself. All calls on whole operands share one climber, whether they
run in numpy or compiled, on one device, as a batch, or sharded; they differ in how they try a rung.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.engine.compute.kernels import pure, refusal_of
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.graph.expr import Expr, operand_avals
from brainsurgery_jax.op import Outcome, Rung

T = TypeVar("T")

Taken = tuple[Rung, Outcome]
"""The rung that was taken, and its outcome."""


def rungs_of(e: Expr, backend: str) -> tuple[Rung, ...]:
    """The rungs of a call, the cheapest on this backend first."""
    assert e.kernel is not None
    if e.kernel.rungs is None:
        return (Rung("", e.kernel, e.static),)
    rungs = e.kernel.rungs(operand_avals(e), dict(e.static), backend)
    return tuple(rung._replace(static=(*e.static, *rung.static)) for rung in rungs)


def attempt(rung: Rung) -> Callable[..., Outcome]:
    """Wrap a rung as `f(arrays, numbers, state) -> Outcome`, whatever it returns."""
    function, kernel = pure(rung.kernel, rung.static), rung.kernel

    def compute(arrays: Sequence[Array], numbers: Mapping[str, object], state: object) -> Outcome:
        if kernel.resumes:
            return function(arrays, {**numbers, "state": state})
        result = function(arrays, numbers)
        value, accepted = result if kernel.guarded else (result, True)
        return Outcome(value, accepted, {}, None)

    return compute


def climb(
    rungs: Sequence[Rung], attempt: Callable[[Rung, object], Outcome], accept: Callable[[Rung, Outcome], T | None]
) -> T | None:
    """Try rungs in turn until `accept` returns a value for an outcome; None if it never does.

    `attempt(rung, state)` starts from the state of the rung before, None for the first.
    """
    state = None
    for rung in rungs:
        outcome = attempt(rung, state)
        if (accepted := accept(rung, outcome)) is not None:
            return accepted
        state = outcome.state
    return None


def climb_alone(e: Expr, rungs: Sequence[Rung], attempt: Callable[[Rung, object], Outcome]) -> Taken:
    """The first rung of one call that accepts its own result, and its outcome. Raises PlanError if none does."""
    if (found := climb_once(rungs, attempt)) is None:
        raise PlanError([refusal_of(e)])
    return found


def climb_once(rungs: Sequence[Rung], attempt: Callable[[Rung, object], Outcome]) -> Taken | None:
    """The first rung of one call that accepts its own result, and its outcome; None if none does."""
    return climb(rungs, attempt, lambda rung, outcome: take(rung, outcome) if bool(outcome.accepted) else None)


def take(rung: Rung, outcome: Outcome) -> Taken:
    """Take an accepted outcome, without its state, which may be large."""
    return rung, Outcome(outcome.value, True, {name: float(x) for name, x in outcome.facts.items()}, None)


def results_of(outcome: Outcome) -> tuple[Array, ...]:
    """The results of a call, one or several."""
    return outcome.value if isinstance(outcome.value, tuple) else (outcome.value,)
