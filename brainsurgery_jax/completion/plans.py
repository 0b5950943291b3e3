"""Completion in the text of a whole plan: the step that the cursor is in, and the session before it."""

from __future__ import annotations

import re
from typing import NamedTuple

from brainsurgery_jax.api import Plan
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.session import Session
from brainsurgery_jax.world import Files

_TOP = re.compile(r"([\w-]+)[ \t]*:")
_ITEM = re.compile(r"([ \t]*)-(?:[ \t]|$)")


class CutStep(NamedTuple):
    """The text of a plan, cut at the step that its end is in. `step` begins at the margin, with its dash."""

    before: str
    step: str


def cut_step(text: str) -> CutStep | None:
    """Cut the text of a plan, up to the cursor, at its last step; None if the cursor is in no step of a block list."""
    lines = text.split("\n")
    section, indent, start = "", None, None
    for at, line in enumerate(lines):
        item = _ITEM.match(line)
        if (top := _TOP.match(line)) is not None:
            section, indent, start = top[1], None, None
        elif item is not None and section == "transforms" and (indent is None or item[1] == indent):
            indent, start = item[1], at
    if start is None or indent is None:
        return None
    step = [line[len(indent) :] if line.startswith(indent) else line.lstrip() for line in lines[start:]]
    return CutStep("\n".join(lines[:start]) + "\n", "\n".join(step))


def begin_before(plan: Plan, world: Files) -> Session:
    """The session after the steps of a plan, up to the first that fails. Raises PlanError if an input cannot be
    opened."""
    session = Session.begin(plan, world)
    for step in plan.data.steps:
        try:
            session = session.step(step).session
        except (PlanError, StoreError):
            break
    return session
