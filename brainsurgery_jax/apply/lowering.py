"""The fold over trees: leaves of pytrees stand where leaves of checkpoints stand in a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Protocol

from brainsurgery_jax.apply.applied import Applied
from brainsurgery_jax.apply.concrete import numbers
from brainsurgery_jax.apply.key_trees import tree_beside
from brainsurgery_jax.apply.names import Named
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, StoreError
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import Demand, Space, State, lower_steps, start
from brainsurgery_jax.lower.outputs import alias_of
from brainsurgery_jax.lower.state import Extras
from brainsurgery_jax.plan.model import Output, PlanData, Step
from brainsurgery_jax.plan.parse import parse_step
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.key_tree import NO_TREE
from brainsurgery_jax.world import Files


class Trees(Files):
    """The outside of `apply`: nothing is ever written, and under a trace nothing is read."""

    def __init__(self, given: Mapping[str, Named], *, readable: bool):
        super().__init__()
        self.given, self.readable = given, readable

    def twin(self, *, opens: bool = True) -> Trees:
        """A world with the same trees, to check in."""
        return Trees(self.given, readable=self.readable and opens)

    def open(self, path: str, format: str | None = None) -> Source:
        """The checkpoint at a path. Raises StoreError, under a trace always."""
        if not self.readable:
            raise StoreError(path, "files are not read while JAX traces", remedy=_give_hint(path))
        return super().open(path, format)

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool, directory: bool) -> None:
        """Accept every destination: outputs and saves are not executed."""

    def spaces(self) -> dict[str, Space]:
        """A space for each tree."""
        return {
            alias: Space(
                {name: self.graph.placeholder(alias, name, aval) for name, aval in tree.avals.items()},
                Extras(tree=NO_TREE if tree.dotted else tree_beside(tree.tree)),
            )
            for alias, tree in self.given.items()
        }


def _give_hint(path: str) -> str:
    stem = os.path.basename(path.rstrip("/")).partition(".")[0]
    alias = stem if stem.isidentifier() else "other"
    call = f"plan.apply(tree, {alias}=other_tree)"
    return f"Write `inputs: ['{alias}::{path}']` besides the others, and give it: `{call}`."


class Loaded(Protocol):
    """A plan as `load` yields it: its steps, and what is wrong with them."""

    @property
    def data(self) -> PlanData: ...
    @property
    def errors(self) -> tuple[Diagnostic, ...]: ...


def lower_onto(plan: Loaded, given: Mapping[str, Named], world: Trees, *, values: bool) -> Applied:
    """The plan lowered onto trees. Raises PlanError with every mistake. `values`: whether steps may ask for numbers."""
    data, problems = _with_alias(plan, given)
    begun = _start(data, world)
    leaves = {e: tree.tensors[n] for a, tree in given.items() for n, e in begun.spaces[a].names.items()}
    refuse_once = cache(lambda: _refuse_mistakes(problems, _check(data, world)))

    def answer(demand: Demand) -> Mapping[Expr, int]:
        refuse_once()
        if not values:
            raise PlanError([_needs_values(demand.step)])
        return numbers(demand.exprs, leaves)

    after = lower_steps(begun, data.steps, world, answer)
    _refuse_mistakes(problems, after)
    return Applied(data, after, leaves, _find_output_alias(data, after, next(iter(given), None)))


def _start(plan: PlanData, world: Trees) -> State:
    read = start(replace(plan, inputs=tuple(i for i in plan.inputs if i.alias not in world.given)), world)
    found = {**read.spaces, **world.spaces()}
    order = dict.fromkeys((*(i.alias for i in plan.inputs), *found))
    default = plan.default_alias if plan.inputs else next(iter(world.given), None)
    return replace(read, spaces={a: found[a] for a in order}, default_alias=default)


def _check(plan: PlanData, world: Trees) -> State:
    """The state after the plan with every number at its bound: for its diagnostics."""
    with closing(world.twin()) as twin:
        return lower_steps(_start(plan, twin), plan.steps, twin)


def _refuse_mistakes(problems: tuple[Diagnostic, ...], state: State) -> None:
    errors = [d for d in (*problems, *state.diagnostics) if d.severity == "error"]
    if errors:
        raise PlanError(errors)


def _needs_values(step: Step) -> Diagnostic:
    name = "the step" if step.op is None else step.op.name
    hint = "Give a number instead, such as `rank: 16`, or apply the plan to concrete arrays."
    text = f"{name}: the shape of its result depends on values, which are not known under a trace or of abstract leaves"
    return Diagnostic("apply-values", text, step.span, hint)


# --- Plans without inputs ---------------------------------------------------------------------------------------------


def _with_alias(plan: Loaded, given: Mapping[str, Named]) -> tuple[PlanData, tuple[Diagnostic, ...]]:
    """The plan, its references without an alias meaning the first tree where the plan has no inputs of its own."""
    data, problems = plan.data, plan.errors
    if data.inputs or not given or not any(p.code == "ref-no-alias" for p in problems):
        return data, problems
    steps, found = [], [p for p in problems if p.code != "ref-no-alias"]
    for step in data.steps:
        alias = next(iter(given))
        read, more = (step, ()) if step.op or step.node is None else parse_step(step.node, alias)
        steps.append(read)
        found += [p for p in more if p not in found]
    return replace(data, steps=tuple(steps)), tuple(found)


# --- What is returned -------------------------------------------------------------------------------------------------


def _find_output_alias(plan: PlanData, state: State, first: str | None) -> str:
    """The alias whose tree is returned: that of the (first) output; where no step wrote anything, the first tree."""
    output = plan.outputs[0] if plan.outputs else Output("")
    if output.alias is None and not (state.written or state.written_within) and first is not None:
        return first
    try:
        return alias_of(output, state)
    except Refusal as bad:
        alias = next((a for a, space in state.spaces.items() if space.names), "")
        written = f"output: {{path: {output.path or 'out.safetensors'}, alias: {alias}}}"
        hint = f"Name it in the plan: `{written}`." if alias else bad.hint
        raise PlanError([Diagnostic(bad.code, f"apply: {bad.message}", output.span, hint)]) from bad
