"""Ops on the session itself: its flags, plans within the plan, help, and the end. No tensor is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BeforeValidator, StrictBool, WithJsonSchema

from brainsurgery_jax.documents import Facts
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Text
from brainsurgery_jax.op import Role, control
from brainsurgery_jax.protocol import Describe, Edit, Inline, Say, SetFlags, Stop, SubPlan, View

_WORDS = {"t": True, "true": True, "f": False, "false": False}
Switch = Annotated[
    StrictBool,
    BeforeValidator(lambda v: _WORDS.get(v.strip().lower(), v) if isinstance(v, str) else v),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": ["t", "f", "T", "F"]}]}),
]


@control("set", keys={"dry_run": "dry-run"})
def set_(
    view: View, *, dry_run: Switch | None = None, preview: Switch | None = None, verbose: Switch | None = None
) -> Iterator[Edit]:
    """Turn flags on or off for the steps that follow; without a key, print them.

    `dry-run`: the steps that follow are checked and computed, but write nothing; turning it off restores the state.
    `preview`: before each step, print what it will create, change and delete. `verbose`: print a line for each tensor.
    Example: `set: {dry-run: true, verbose: t}`
    """
    if dry_run is preview is verbose is None:
        flags = view.flags._asdict().items()
        yield Say(Facts("", tuple((key.replace("_", "-"), value) for key, value in flags)))
    yield SetFlags(dry_run, preview, verbose)


@control(keys={"plan_yaml": "plan-yaml"})
def execute(
    view: View,
    *,
    transforms: Annotated[SubPlan, Role("steps")] | None = None,
    plan: Annotated[SubPlan, Role("plan")] | None = None,
    plan_yaml: Annotated[SubPlan, Role("plan-text")] | None = None,
    path: Annotated[SubPlan, Role("plan-file")] | None = None,
    recipe: Annotated[SubPlan, Role("recipe")] | None = None,
) -> Iterator[Edit]:
    """Do the steps of other plans here: of a list, a plan, the YAML text of one, a file, or a recipe, in this order.

    The inputs of such a plan are loaded first, its output is saved last. References without an alias mean the only
    input of the first plan that has exactly one, else the only alias that there is. The aliases of a plan stay when it
    has ended; a recipe sees none but its own, which end with it. Plans can be nested 16 levels deep.
    Example: `execute: {transforms: [{delete: {target: 'tmp\\..*', if_missing: skip}}]}`
    """
    plans = tuple(p for p in (transforms, plan, plan_yaml, path, recipe) if p is not None)
    if not any(p.steps for p in plans):
        hint = "Give at least one of transforms, plan, plan-yaml, path and recipe, with a step in it."
        raise Refusal("execute-empty", "there is no step to execute", hint=hint)
    known = view.aliases()
    alone = known[0] if len(known) == 1 else None
    yield Inline(plans, next((p.alias for p in plans if p.alias is not None), alone))


@control("help", shorthand="command")
def help_(view: View, *, command: Text | None = None, assert_: Text | None = None) -> Iterator[Edit]:
    """Print what an op does and which keys it takes; without a name, the list of all ops.

    Example: `help: {assert: equal}`
    """
    yield Describe("assert" if assert_ is not None else command, assert_)


@control("exit")
def leave(view: View) -> Iterator[Edit]:
    """Skip the steps that follow; the output is still written.

    Example: `exit: {}`
    """
    yield Stop()
