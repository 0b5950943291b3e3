"""Lowering: a plan and the headers of its checkpoints become a program, by a fold over an immutable state."""

from brainsurgery_jax.lower.fold import lower, lower_step, lower_steps
from brainsurgery_jax.lower.program import Check, Effect, Program, Publication
from brainsurgery_jax.lower.state import Answer, Demand, Space, State, World, start

__all__ = [
    "Answer",
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
    "lower_steps",
    "start",
]
