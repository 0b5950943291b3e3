"""Lowering: a plan and the headers of its checkpoints become a program, by a fold over an immutable state."""

from brainsurgery_jax.lower.fold import lower, lower_step
from brainsurgery_jax.lower.program import Check, Demand, Effect, Program, Publication
from brainsurgery_jax.lower.state import Space, State, World, start

__all__ = [
    "Check",
    "Demand",
    "Effect",
    "Program",
    "Publication",
    "Space",
    "State",
    "World",
    "lower",
    "lower_step",
    "start",
]
