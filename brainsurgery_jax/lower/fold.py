"""The fold: `lower_step` applies one step of the plan to the state, `lower` a whole plan.

A step yields edits, which are applied to a draft. The draft becomes the next state only if the whole step succeeds. A
failed step leaves diagnostics, and the tensors that it would have created are marked unknown, so that one mistake
yields one message.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from itertools import chain
from typing import cast

from brainsurgery_jax.codes import can_hold_codes
from brainsurgery_jax.documents import Text
from brainsurgery_jax.errors import Diagnostic, Refusal, Span
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower import kinds
from brainsurgery_jax.lower.changes import Changes
from brainsurgery_jax.lower.computed_codes import floats_instead, refuse_codes_alone, refuse_other_values
from brainsurgery_jax.lower.edits import Unknown
from brainsurgery_jax.lower.failure import mark_failed, misunderstood
from brainsurgery_jax.lower.following import is_start
from brainsurgery_jax.lower.forms import MISSING, form_edits
from brainsurgery_jax.lower.outputs import alias_of, config_notes, inside, output_of, publication, publications
from brainsurgery_jax.lower.program import Check, Effect, Program, Publication, log
from brainsurgery_jax.lower.scales import coded
from brainsurgery_jax.lower.state import Answer, Demand, Extras, State, World, take_bounds
from brainsurgery_jax.lower.telling import Lines, preview, session_line
from brainsurgery_jax.lower.view import StepView
from brainsurgery_jax.op import ControlOp, SinkOp, TensorOp, gather_groups
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.build import build_step
from brainsurgery_jax.plan.model import Location, Output, PlanData, Step
from brainsurgery_jax.plan.parse import parse_step
from brainsurgery_jax.protocol import (
    Bind,
    Describe,
    Edit,
    Expand,
    Inline,
    Known,
    PendingReport,
    Publish,
    Say,
    SetFlags,
    Stop,
    SubPlan,
    Substep,
    Verdict,
    report,
    settle,
)


def lower_step(state: State, step: Step, world: World, answer: Answer = take_bounds) -> State:
    """The state after one step. Reads headers only; `answer` computes numbers that depend on data.

    This is the one place that handles a demand for such a number: only the step at work is lowered again.
    """
    if state.stopped:
        return state
    if step.op is None:
        return misunderstood(state, step, world)
    view = StepView(state, step, world)
    try:
        after = _sink(state, step, view) if isinstance(step.op, SinkOp) else _edit(state, step, view, answer)
    except Unknown:
        return mark_failed(state, step, world)
    except Refusal as bad:
        if step.lenient and bad.code in MISSING:
            after = replace(state, effects=(*state.effects, Effect(step, skipped=1)))
        else:
            floats = floats_instead(bad, view.coded, state.default_alias)
            bad.hint = floats or kinds.remedy(view, bad) or bad.hint
            mistakes = (_diagnose(step, each, provisional=view.provisional) for each in (bad, *bad.others))
            told = state.complain(*mistakes)
            after = mark_failed(told, step, world, slow=bad.code == "regex-timeout")
    if view.notes:
        after = after.complain(*view.notes)
    if view.wanted and (found := answer(Demand(tuple(view.wanted), step, state))):
        return lower_step(replace(state, known={**state.known, **found}), step, world, answer)
    if view.wanted and after.effects:
        after = replace(after, effects=(*after.effects[:-1], after.effects[-1]._replace(staged=True)))
    return after


def lower_steps(state: State, steps: Iterable[Step], world: World, answer: Answer = take_bounds) -> State:
    """The state after several steps. See `lower_step`."""
    return reduce(lambda before, step: lower_step(before, step, world, answer), steps, state)


def lower(
    state: State,
    plan: PlanData,
    world: World,
    answer: Answer = take_bounds,
    watch: Callable[[State], None] | None = None,
) -> Program:
    """The program of a plan, given the state before its steps. See `lower_step`. `watch` is called with that state, and
    with the one after each step."""
    was_on = gc.isenabled()

    def compute(demand: Demand) -> Mapping[Expr, int]:
        with _collection(on=was_on):
            return answer(demand)

    with _collection(on=False):
        watch = watch or _ignore
        watch(state)
        for step in plan.steps:
            after = lower_step(state, step, world, compute)
            state = preview(state, after, step, plan) if state.flags.preview and not state.stopped else after
            watch(state)
        for output in plan.outputs:
            state = ask_output(state, output, world, compute)
        made, problems = publications(state, plan, world)
    if state.flags.preview and plan.steps:
        state = state.with_checks((*state.checks, log(plan.steps[-1], session_line(state))))
    return Program(state.checks, made, state.effects, state.diagnostics + problems, state.flags)


def ask_output(state: State, output: Output, world: World, answer: Answer = take_bounds) -> State:
    """The state after the asserts of an output, whose default alias is the one that is written."""
    if not output.asserts or state.stopped:
        return state
    try:
        alias = alias_of(output, state)
    except Refusal:  # told where the output is made
        return state
    place = output.spans.get(("asserts",), output.span)
    step, problems = build_step(Substep("assert", {"all": output.asserts}), place, alias)
    return lower_step(state.complain(*problems), step, world, answer)


def _ignore(state: State) -> None:
    """Nobody watches."""


Parsed = tuple[Step, tuple[Diagnostic, ...]]
"""A step and its mistakes."""


@contextmanager
def _collection(*, on: bool) -> Iterator[None]:
    """A context with the garbage collector on or off. During lowering it would repeatedly walk a growing graph of which
    nothing is garbage, a quarter of the time."""
    was_on = gc.isenabled()
    _switch_collector(on=on)
    try:
        yield
    finally:
        _switch_collector(on=was_on)


def _switch_collector(*, on: bool) -> None:
    gc.enable() if on else gc.disable()


def _diagnose(step: Step, bad: Refusal, *, provisional: bool) -> Diagnostic:
    assert step.op is not None
    label = f"{step.op.name}.{bad.key}" if bad.key and (bad.key,) in step.spans else step.label
    severity = "note" if provisional else "error"
    return Diagnostic(bad.code, f"{label}: {bad.message}", _place(step, bad.key, bad.at), bad.hint, severity)


def _place(step: Step, key: str, part: Location = ()) -> Span | None:
    """The place of a key: in a part of the payload, or below it (inside an assert) if it occurs only once."""
    found = [at for at in step.spans if at and at[-1] == key and at[: len(part)] == part and "@key" not in at[-2:-1]]
    named = (*part, key) if len(found) != 1 else found[0]
    return step.spans.get(named) or _place_condition(step, part)


def _place_condition(step: Step, part: Location) -> Span | None:
    """The place of a condition: of several, that part; of one alone, its operator if that is on a line of its own."""
    operators = [span for at, span in step.spans.items() if len(at) == 2 and at[0] == "@key"]
    alone = not part and step.label.startswith("assert.") and len(operators) == 1
    if alone and step.span is not None and operators[0].line != step.span.line:
        return operators[0]
    return step.place(*part)


# --- Sinks ------------------------------------------------------------------------------------------------------------


def _sink(state: State, step: Step, view: StepView) -> State:
    assert isinstance(step.op, SinkOp)
    says: Verdict | PendingReport = step.op.fn(view, **gather_groups(step.op.fn, step.params))
    after = replace(state, spaces=view.spaces(), effects=(*state.effects, Effect(step)))
    verdict = None if isinstance(says, PendingReport) else settle(says, None)
    told = (log(step, f"{step.label}: ok"),) if state.flags.verbose and not isinstance(says, PendingReport) else ()
    if verdict is None:
        return replace(after, checks=(*after.checks, Check(step, says), *told))
    if verdict.holds:
        return replace(after, checks=(*after.checks, *told))
    return after.complain(diagnose_assert(step, verdict, provisional=view.provisional))


def diagnose_assert(step: Step, verdict: Known, *, provisional: bool = False) -> Diagnostic:
    """The diagnostic of an assert that does not hold."""
    severity = "note" if provisional else "error"
    place = _place_condition(step, verdict.at)
    return Diagnostic(verdict.code, f"{step.label}: {verdict.why}", place, verdict.hint, severity)


# --- Edits ------------------------------------------------------------------------------------------------------------


def _edit(state: State, step: Step, view: StepView, answer: Answer) -> State:
    op, skipped = step.op, []
    edits = form_edits(op, step, view, skipped) if isinstance(op, TensorOp) else _control_edits(op, step.params, view)
    lines = Lines(step, dry_run=state.flags.dry_run) if state.flags.verbose else None
    last: Inline | Expand | SetFlags | None = None
    changes, may_hold_codes = Changes(view, state.writes), list[Bind]()
    for edit in chain(edits, _keep_rest(view)):
        if lines is not None:
            lines.note(edit, view.fetched)
            view.fetched = []
        if isinstance(edit, Bind):  # of 90,000 edits nearly all are, and `match` is slow
            if view.coded:
                refuse_codes_alone(cast("Expr", edit.expr), view.coded, state.default_alias)
            changes.bind(edit)
            if can_hold_codes(edit.expr.aval.dtype):
                may_hold_codes.append(edit)
        elif isinstance(edit, Inline | Expand | SetFlags):
            last = edit
        elif not changes.apply(edit):
            state = _say(state, step, view, edit)
    changes.move()
    for bound in may_hold_codes:  # after all edits, since the step may replace the scales as well
        _check_values(state, view, bound)
    effect = changes.effect(step, len(skipped) + view.skipped)
    after = replace(state, spaces=view.spaces(), effects=(*state.effects, effect)).with_writes(changes.written)
    if lines is not None and (told := "\n".join(lines)):
        after = after.with_checks((*after.checks, log(step, told)))
    match last:
        case SetFlags():
            given = {key: value for key, value in last._asdict().items() if value is not None}
            return after.with_flags(after.flags._replace(**given))
        case Inline():
            after = _inline(after, last, view, answer)
        case Expand():
            after = _expand(after, last, view, answer)
    return after.drop_scratch(frozenset(view.scratches))


def _check_values(state: State, view: StepView, bound: Bind) -> None:
    """Refuse a tensor that the step wrote if it holds values that are no codes beside the scales of codes."""
    expr, (alias, name) = cast("Expr", bound.expr), bound[:2]
    if expr.is_poison or is_start(expr):
        return
    names = state.spaces[alias].names if alias in state.spaces else {}
    before = coded(alias, name, names[name], names) if name in names else None
    after = view.space(alias).names if alias in view.aliases() else {}
    refuse_other_values(expr, before, view.coded, after, state.default_alias)


def _keep_rest(view: StepView) -> Iterator[Edit]:
    """Bind the tensors that a step keeps as they are, after all edits of its op."""
    yield from view.kept


def _inline(state: State, inline: Inline, view: StepView, answer: Answer) -> State:
    """The state after the steps of inner plans, which have their own default alias."""
    if state.doubtful and inline.default_alias is None:
        raise Unknown
    if wrong := _cycle(state, inline, view) or _depth(state, _DEEP_PLANS):
        return _refuse_within(state, view, wrong)
    known, inner = tuple(state.spaces), replace(state, default_alias=inline.default_alias, nested=True)
    for plan in inline.plans:
        if plan.apart:
            inner = _lower_apart(inner, plan, view, answer)
        else:
            parsed = [parse_step(node, inline.default_alias, known) for node in plan.steps]
            inner = _lower_within(inner, parsed, view, answer)
    return replace(inner, default_alias=state.default_alias, nested=state.nested)


def _lower_apart(state: State, plan: SubPlan, view: StepView, answer: Answer) -> State:
    """The state after the steps of an inner plan whose aliases are its own."""
    parsed = [parse_step(node, plan.alias, ()) for node in plan.steps]
    alone = replace(state, spaces={}, default_alias=plan.alias)
    after = _lower_within(alone, parsed, view, answer)
    return replace(after, spaces=state.spaces, default_alias=state.default_alias, written_within=state.written_within)


MAX_DEPTH = 16
"""The deepest nesting of steps within steps."""


def _expand(state: State, expand: Expand, view: StepView, answer: Answer) -> State:
    """The state after the steps that an op expands to. Their mistakes are reported as mistakes of the op."""
    step = view.step
    assert step.op is not None
    if wrong := _depth(state, _DEEP_OPS):
        return _refuse_within(state, view, wrong)
    scratch = state.scratch | frozenset(view.scratches)
    built = [build_step(one, step.span, expand.alias or state.default_alias) for one in expand.steps]
    after = _lower_within(replace(state, scratch=scratch), built, view, answer)
    told, found = after.diagnostics[: len(state.diagnostics)], after.diagnostics[len(state.diagnostics) :]
    named = (replace(d, message=f"{step.op.name}: {d.message}") for d in found)
    return replace(after, diagnostics=(*told, *named), scratch=state.scratch)


def _lower_within(state: State, steps: Iterable[Parsed], view: StepView, answer: Answer) -> State:
    """The state after steps within the step of a view. Their effects become inner effects of that step."""
    *earlier, own = state.effects
    inner = replace(state, effects=(), within=(*state.within, view.step))
    for step, problems in steps:
        inner = lower_step(inner.complain(*problems), step, view.world, answer)
    return replace(inner, effects=(*earlier, own._replace(inner=(*own.inner, *inner.effects))), within=state.within)


_DEEP_OPS = Refusal(
    "execute-nested", f"steps expand to steps more than {MAX_DEPTH} levels deep",
    hint="Correct the op: it may expand to itself.",
)  # fmt: skip
_DEEP_PLANS = Refusal(
    "execute-nested", f"plans are nested more than {MAX_DEPTH} levels deep",
    hint="Replace this step by the steps that it executes.",
)  # fmt: skip


def _depth(state: State, deep: Refusal) -> Refusal | None:
    """The refusal of steps that are nested too deeply; None if they are not."""
    return deep if len(state.within) >= MAX_DEPTH else None


def _cycle(state: State, inline: Inline, view: StepView) -> Refusal | None:
    """The refusal of a step that executes a file which is being executed already, with the cycle of files; or None."""
    places = [step.span for step in (*state.within, view.step) if step.span is not None]
    files = [place.file for place in places if not place.in_mapping]
    keys = [view.world.key(file) for file in files]
    for again in (plan.file for plan in inline.plans if plan.file is not None):
        if (key := view.world.key(again)) in keys:
            chain = dict.fromkeys((*files[keys.index(key) :],))
            message = f"plans execute each other without end: {' -> '.join((*chain, again))}"
            hint = f"Remove this step: '{again}' is being executed already."
            return Refusal("execute-nested", message, key="path", hint=hint)
    return None


def _refuse_within(state: State, view: StepView, wrong: Refusal) -> State:
    """The state after a step whose inner steps are refused: the tensors that they would have created are unknown."""
    told = state.complain(_diagnose(view.step, wrong, provisional=False))
    return misunderstood(told, view.step, view.world)


def _say(state: State, step: Step, view: StepView, edit: Edit) -> State:
    match edit:
        case Stop():
            return replace(state, stopped=True)
        case Say(document):
            return replace(state, checks=(*state.checks, Check(step, report(document))))
        case Describe(name, operator):
            return replace(state, checks=(*state.checks, Check(step, report(Text(pages.text_of(name, operator))))))
        case Publish(alias=alias) if alias in (*state.scratch, *view.scratches):
            raise Refusal("alias-unknown", f"'{alias}' ends with the step that created it, and is never saved",
                          key="alias", hint="Save another alias.")  # fmt: skip
        case Publish(path=path, alias=alias, names=names):
            space = view.space(alias, "alias")
            extras = Extras() if names else space.extras
            tensors = {n: view.fetch(alias, n) for n in (names or list(space.names))}
            made = publication(edit, tensors, state.spaces.get(alias), step, view.world)
            _refuse_second_save(made, state, view)
            images = {**state.images, view.world.key(path): tensors}
            made_too = () if state.flags.dry_run else (made,)
            after = replace(state, publications=(*state.publications, *made_too), images=images)
            return after.complain(*config_notes(made, output_of(edit, step), extras, after, view.world, "save"))
    raise AssertionError(edit)


def _refuse_second_save(made: Publication, state: State, view: StepView) -> None:
    place = view.world.key(made.path)
    key = view.step.op.checkpoint if isinstance(view.step.op, ControlOp) else ""
    for earlier in state.publications:
        other = view.world.key(earlier.path)
        if place == other and not made.overwrite:
            hint = "Write to another path, or add `overwrite: true` here, and only this one will be kept."
            raise Refusal("output-twice", f"'{made.path}' is saved by an earlier step already", key=key, hint=hint)
        if inside(place, other) and place != other:
            message = f"'{made.path}' lies inside or around '{earlier.path}', which an earlier step saves"
            raise Refusal("output-inside", message, key=key, hint="Write to a path of its own.")


def _control_edits(op: object, params: Mapping[str, object], view: StepView) -> Iterable[Edit]:
    assert isinstance(op, ControlOp)
    return op.fn(view, **gather_groups(op.fn, params))
