"""Steps that are repeated until they say that they are done."""

from __future__ import annotations

from collections.abc import Callable

from brainsurgery_jax._lazy import Array, jax
from brainsurgery_jax.numerics.math import on_host

State = tuple[Array, Array]
"""What a step changes, and whether it is done."""
Step = Callable[[object, State], State]


def repeat_until_done(step: Step, state: State, times: int) -> State:
    """The state after some steps, or after one that says that it is done."""
    if not on_host(state[0]):
        return jax.lax.fori_loop(0, times, step, state)
    for number in range(times):
        state = step(number, state)
        if state[1]:
            break
    return state
