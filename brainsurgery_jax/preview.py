"""What a step of a session would do, and the names that its patterns match."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Diagnostic, Refusal
from brainsurgery_jax.lower import State
from brainsurgery_jax.lower.state import matching
from brainsurgery_jax.op import OPS, Assertion, Field, Op, element_role
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.select import Ref


class Preview(NamedTuple):
    """What a step would do, told without doing it. `matches` are the names that its patterns match, by key; `opens` the
    checkpoints that it would read first, without which the rest is not known; `writes` those that it would publish."""

    matches: tuple[tuple[str, tuple[str, ...]], ...] = ()
    created: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    configured: tuple[str, ...] = ()
    problems: tuple[Diagnostic, ...] = ()
    opens: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def matches_of(step: Step, state: State) -> Iterator[tuple[str, tuple[str, ...]]]:
    """By key, the names that the patterns of a step match, also of a step that is not complete yet."""
    name = next(iter(step.text), "") if isinstance(step.text, dict) else ""
    op = step.op or OPS.get(name)
    if op is not None:
        yield from _walk_matches(op, step.params, state)


def _walk_matches(op: Op, params: Any, state: State) -> Iterator[tuple[str, tuple[str, ...]]]:
    for f in op.fields():
        value = params.get(f.param)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Assertion):
                yield from _walk_matches(item.op, item.params, state)
            elif isinstance(item, Ref) and _is_pattern(f) and (space := state.spaces.get(item.alias)) is not None:
                try:
                    yield f.key, tuple(n for n, _ in matching(item, space.names))
                except Refusal:
                    continue


def _is_pattern(field: Field) -> bool:
    role = field.role or element_role(field.annotation)
    return role is not None and role.is_pattern
