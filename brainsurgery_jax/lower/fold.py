"""The fold: `lower_step` makes one step of the plan part of the state; `lower` does so for a whole plan.

A step is asked for its edits, the edits are applied to a draft, and the draft becomes the next state only if all of it is
right. A failed step leaves diagnostics, and the names that it would have made stand for the unknown, so that one mistake
gives one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from brainsurgery_jax.errors import Diagnostic, Refusal
from brainsurgery_jax.lower.outputs import publication, publications
from brainsurgery_jax.lower.program import Check, Demand, Effect, Program
from brainsurgery_jax.lower.state import Space, State, World
from brainsurgery_jax.lower.view import StepView, Unknown
from brainsurgery_jax.op import (
    AddAlias,
    Bind,
    ControlOp,
    Drop,
    DropAlias,
    Edit,
    Known,
    Move,
    Publish,
    RenameAlias,
    Report,
    Say,
    SinkOp,
    Stop,
    TensorOp,
    Verdict,
    settle,
)
from brainsurgery_jax.plan.model import Plan, Step
from brainsurgery_jax.select import Ref, compile_pattern, compile_template


def lower_step(state: State, step: Step, world: World) -> State | Demand:
    """The state after one step, or the numbers that it needs first. Reads headers only."""
    if state.stopped:
        return state
    if step.op is None:  # not understood: what it would have done is unknown
        return replace(state, spaces={a: replace(s, tainted=True) for a, s in state.spaces.items()})
    view = StepView(state, step, world)
    try:
        after = _sink(state, step, view) if isinstance(step.op, SinkOp) else _edited(state, step, view)
    except Unknown:
        return _failed(state, step)
    except Refusal as bad:
        severity = "note" if view.provisional else "error"
        place = step.place(bad.key) if bad.key else step.span
        label = f"{step.op.name}.{bad.key}" if bad.key else step.op.name
        found = Diagnostic(bad.code, f"{label}: {bad.message}", place, bad.hint, severity)
        return _failed(state.complain(found), step)
    finally:
        world.graph.provisional = False
    if view.wanted and not world.provisional:
        return Demand(tuple(view.wanted), step)
    return after


def lower(state: State, plan: Plan, world: World, steps: Sequence[Step] | None = None) -> Program | Demand:
    """The program of a plan, from a state before its steps (or before the `steps` that are left)."""
    for step in plan.steps if steps is None else steps:
        after = lower_step(state, step, world)
        if isinstance(after, Demand):
            return after
        state = after
    made, problems = publications(state, plan, world)
    return Program(state.checks, made, state.effects, state.diagnostics + problems)


# --- Sinks --------------------------------------------------------------------------------------------------------------


def _sink(state: State, step: Step, view: StepView) -> State:
    assert isinstance(step.op, SinkOp)
    says: Verdict | Report = step.op.fn(view, **step.params)
    after = replace(state, spaces=view.spaces(), effects=(*state.effects, Effect(step)))
    verdict = None if isinstance(says, Report) else settle(says, None)
    if verdict is None:
        return replace(after, checks=(*after.checks, Check(step, says)))
    if verdict.holds:
        return after
    return after.complain(failed_assert(step, verdict, provisional=view.provisional))


def failed_assert(step: Step, verdict: Known, *, provisional: bool = False) -> Diagnostic:
    """The diagnostic of an assert that does not hold."""
    assert step.op is not None
    operator = getattr(step.params.get("operator"), "op", None)
    label = f"assert.{operator.name}" if operator else step.op.name
    return Diagnostic(
        "assert-failed", f"{label}: {verdict.why}", step.span, severity="note" if provisional else "error"
    )


# --- Edits --------------------------------------------------------------------------------------------------------------


def _edited(state: State, step: Step, view: StepView) -> State:
    op = step.op
    edits = _form_edits(op, step.params, view) if isinstance(op, TensorOp) else _control_edits(op, step.params, view)
    created: list[str] = []
    changed: list[str] = []
    deleted: list[str] = []
    moves: list[Move] = []
    written = set(state.written)
    for edit in edits:
        match edit:
            case Bind(alias, name, expr, dest):
                (changed if name in view.space(alias).names else created).append(f"{alias}::{name}")
                view.bind(alias, name, expr, dest)
                written.add(alias)
            case Drop(alias, name):
                view.drop(alias, name)
                deleted.append(f"{alias}::{name}")
                written.add(alias)
            case Move():
                moves.append(edit)
            case AddAlias(alias, tensors, path):
                view.add_alias(alias, tensors, path)
                written.add(alias)
                created.extend(f"{alias}::{name}" for name in tensors or ())
            case DropAlias(alias):
                deleted.extend(f"{alias}::{name}" for name in view.space(alias, "alias").names)
                view.drop_alias(alias)
                written.discard(alias)
            case RenameAlias(alias, to):
                view.rename_alias(alias, to)
                written = (written - {alias}) | {to}
            case _:
                state = _say(state, step, view, edit)
    if moves:
        view.move(moves)
        deleted.extend(f"{m.alias}::{m.name}" for m in moves)
        created.extend(f"{m.to_alias}::{m.to_name}" for m in moves)
        written.update(m.to_alias for m in moves)
    effect = Effect(step, tuple(created), tuple(changed), tuple(deleted))
    return replace(state, spaces=view.spaces(), written=frozenset(written), effects=(*state.effects, effect))


def _say(state: State, step: Step, view: StepView, edit: Edit) -> State:
    match edit:
        case Stop():
            return replace(state, stopped=True)
        case Say(text):
            return replace(state, checks=(*state.checks, Check(step, text)))
        case Publish(path, alias, names):
            space = view.space(alias, "alias").names
            tensors = {n: view.fetch(alias, n) for n in (names or list(space))}
            made = publication(edit, tensors, state.spaces.get(alias), step, view.world)
            images = state.images | {view.world.key(path): tensors}
            return replace(state, publications=(*state.publications, made), images=images)
    raise AssertionError(edit)


def _control_edits(op: Any, params: Mapping[str, Any], view: StepView) -> Iterable[Edit]:
    assert isinstance(op, ControlOp)
    return op.fn(view, **params)


def _form_edits(op: TensorOp, params: Mapping[str, Any], view: StepView) -> Iterator[Edit]:
    """One edit per match of the form's pattern, in sorted order; each sees the edits before it."""
    form = op.form
    keys = dict.fromkeys((*form.reads, *form.writes))
    refs: dict[str, Ref] = {key: params[key] for key in keys}
    static = {key: value for key, value in params.items() if key not in refs}
    given = {f.param: f.default for f in op.fields() if f.param not in refs} | static
    filled = [key for key in keys if key != form.matched]
    (write,) = form.writes
    for name, targets in view.rename(refs[form.matched], {key: refs[key] for key in filled}):
        at = {form.matched: name, **dict(zip(filled, targets, strict=True))}
        whole = {
            k: _existing(view, refs[k], at[k], k, k != form.matched)
            for k in keys
            if k in form.reads or form.dest == "existing"
        }
        srcs = [view.slice(whole[k], refs[k], k) for k in form.reads]
        made = view.apply(op.kernel, *srcs, **given)
        if form.dest == "existing":
            made = view.update(whole[write], refs[write], made, write)
        yield Bind(refs[write].alias, at[write], made, form.dest)


def _existing(view: StepView, ref: Ref, name: str, key: str, templated: bool) -> Any:
    if templated:
        view.has(ref.alias, name)
    return view.fetch(ref.alias, name, key)


# --- Failure ------------------------------------------------------------------------------------------------------------


def _failed(state: State, step: Step) -> State:
    """The state after a step that failed: what it would have made or changed is known to be unknown."""
    assert step.op is not None
    spaces = dict(state.spaces)
    refs = {
        f.key: (f.role, step.params[f.param]) for f in step.op.fields() if isinstance(step.params.get(f.param), Ref)
    }
    if isinstance(step.op, SinkOp):
        return state
    source = next((ref for role, ref in refs.values() if role is not None and role.kind == "pattern"), None)
    for key, (role, ref) in refs.items():
        kept = isinstance(step.op, TensorOp) and key not in step.op.form.writes
        if role is not None and ref.alias in spaces and not kept:
            spaces[ref.alias] = _unknown(spaces[ref.alias], role.kind, ref, source)
    if isinstance(step.op, ControlOp) and step.op.makes:
        alias = step.params.get(step.op.makes) or state.default_alias or "model"
        spaces.setdefault(str(alias), Space({}, tainted=True))
    return replace(state, spaces=spaces)


def _unknown(space: Space, kind: str, ref: Ref, source: Ref | None) -> Space:
    """A space in which the tensors that `ref` names are unknown; all of it is doubtful where the names are not known."""
    try:
        if kind == "pattern":
            gone = {name for name, _ in compile_pattern(ref.name).matches(space.names)}
            return replace(space, names={n: e for n, e in space.names.items() if n not in gone}, tainted=True)
        if kind == "name":
            literal = ref.name if isinstance(ref.name, str) else None
        else:
            literal = None if source is None else compile_template(ref.name, compile_pattern(source.name)).literal
    except Refusal:
        literal = None
    if literal is None:
        return replace(space, tainted=True)
    return replace(space, names={n: e for n, e in space.names.items() if n != literal}, tainted=True)
