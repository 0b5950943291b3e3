"""The fold over trees: leaves of pytrees stand where leaves of checkpoints stand in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from brainsurgery_jax.apply.concrete import numbers
from brainsurgery_jax.apply.names import Named
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, StoreError
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import Demand, Space, State, lower_step, start
from brainsurgery_jax.lower.outputs import alias_of
from brainsurgery_jax.plan.model import Output, Plan, Step
from brainsurgery_jax.plan.parse import parse_step
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.world import Files

NOT_READ = "Name it under `inputs:` and give it as a tree: `plan.apply(tree, ALIAS=other_tree)`."


class Trees(Files):
    """The outside of `apply`: nothing is ever written, and under a trace nothing is read."""

    def __init__(self, given: Mapping[str, Named], *, readable: bool, provisional: bool = False):
        super().__init__(provisional=provisional)
        self.given, self.readable = given, readable

    def provisional_twin(self) -> Trees:
        """A world with the same trees, to check in."""
        return Trees(self.given, readable=self.readable, provisional=True)

    def open(self, path: str, format: str | None = None) -> Source:
        """The checkpoint at a path. Raises StoreError, under a trace always."""
        if not self.readable:
            raise StoreError(path, "files are not read while JAX traces", remedy=NOT_READ)
        return super().open(path, format)

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool, directory: bool) -> None:
        """Accept every destination: outputs and saves are not executed."""

    def spaces(self) -> dict[str, Space]:
        """A space for each tree."""
        return {
            alias: Space({name: self.graph.given(alias, name, aval) for name, aval in tree.avals.items()})
            for alias, tree in self.given.items()
        }


class Loaded(Protocol):
    """A plan as `load` yields it: its steps, and what is wrong with them."""

    @property
    def data(self) -> Plan: ...
    @property
    def errors(self) -> tuple[Diagnostic, ...]: ...


class Applied(NamedTuple):
    """A plan lowered onto trees: the state after its last step, the leaves, and the alias whose tree is returned."""

    plan: Plan
    state: State
    given: Mapping[Expr, Any]
    alias: str

    @property
    def names(self) -> Mapping[str, Expr]:
        """The tensors of the tree to return."""
        return self.state.spaces[self.alias].names


def lowered(plan: Loaded, given: Mapping[str, Named], world: Trees, *, values: bool) -> Applied:
    """The plan lowered onto trees. Raises PlanError with every mistake. `values`: whether steps may ask for numbers."""
    data, problems = _with_alias(plan, given)
    before = _start(data, world)
    leaves = {e: given[a].tensors[n] for a, s in world.spaces().items() for n, e in s.names.items()}
    after = _folded(before, data.steps, world)
    while isinstance(after, Demand):
        _refuse_mistakes(problems, _checked(data, world))
        if not values:
            raise PlanError([_needs_values(after.step)])
        before = replace(before, known={**before.known, **numbers(after.exprs, leaves)})
        after = _folded(before, data.steps, world)
    _refuse_mistakes(problems, after)
    return Applied(data, after, leaves, _returned_alias(data, after, next(iter(given), None)))


def _start(plan: Plan, world: Trees) -> State:
    read = start(replace(plan, inputs=tuple(i for i in plan.inputs if i.alias not in world.given)), world)
    found = {**read.spaces, **world.spaces()}
    order = dict.fromkeys((*(i.alias for i in plan.inputs), *found))
    default = plan.default_alias if plan.inputs else next(iter(world.given), None)
    return replace(read, spaces={a: found[a] for a in order}, default_alias=default)


def _folded(state: State, steps: Sequence[Step], world: Trees) -> State | Demand:
    for step in steps:
        after = lower_step(state, step, world)
        if isinstance(after, Demand):
            return after
        state = after
    return state


def _checked(plan: Plan, world: Trees) -> State:
    """The state after the plan with every number at its bound: for its diagnostics."""
    twin = world.provisional_twin()
    try:
        after = _folded(_start(plan, twin), plan.steps, twin)
    finally:
        twin.close()
    assert isinstance(after, State), "a provisional world demands nothing"
    return after


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


def _with_alias(plan: Loaded, given: Mapping[str, Named]) -> tuple[Plan, tuple[Diagnostic, ...]]:
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


def _returned_alias(plan: Plan, state: State, first: str | None) -> str:
    """The alias whose tree is returned: that of the (first) output; where no step wrote anything, the first tree."""
    output = plan.outputs[0] if plan.outputs else Output("")
    if output.alias is None and not (state.written or state.written_within) and first is not None:
        return first
    try:
        return alias_of(output, state)
    except Refusal as bad:
        hint = "Say which in the plan: `output: {path: PATH, alias: ALIAS}`."
        raise PlanError([Diagnostic(bad.code, f"apply: {bad.message}", output.span, hint)]) from bad
