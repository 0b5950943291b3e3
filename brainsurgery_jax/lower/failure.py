"""The state after a failed step. The names that it would have created are marked unknown, so that one mistake yields
one message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from brainsurgery_jax.errors import Refusal, StoreError
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.state import Space, State, World, matching, pattern_of
from brainsurgery_jax.op import OPS, ControlOp, Makes, Op, Role, SinkOp, TensorOp, element_role
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.select import Ref, compile_template, parse_ref


def misunderstood(state: State, step: Step, world: World) -> State:
    """The state after a step that the parser refused: every name that a text in its payload may mean is unknown."""
    name = next(iter(step.text), "") if isinstance(step.text, dict) else ""
    if isinstance(OPS.get(name), SinkOp):  # a sink changes nothing
        return state
    spaces = {a: replace(s, tainted=True) for a, s in _doubt(state, OPS.get(name)).items()}
    for value in _references(step.text):
        for alias in spaces:
            try:
                ref = parse_ref(value, alias)
            except Refusal:
                continue
            if ref.alias == alias:
                for kind in ("pattern", "name"):
                    found = _find_names(spaces[alias], kind, ref, None, None)
                    spaces[alias] = _without(spaces[alias], found, creates=True)
    texts = [text for text in _references(step.text) if isinstance(text, str)]
    return replace(state, spaces=spaces, images=_forget_images(state, texts, world), doubtful=True)


def _doubt(state: State, op: Op | None) -> dict[str, Space]:
    """The spaces after an op failed. Their configs are unknown if the op may change configs."""
    if isinstance(op, Op) and not (isinstance(op, ControlOp) and op.configures):
        return dict(state.spaces)
    return {a: replace(s, extras=replace(s.extras, doubtful=True)) for a, s in state.spaces.items()}


def _references(value: Any) -> Iterator[Any]:
    """The texts and lists of texts in plain data: each may be a reference."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield value
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _references(item)


def _forget_images(state: State, paths: Iterable[str], world: World) -> Mapping[str, Mapping[str, Expr] | None]:
    """The saved images, after the failure of a step that may save to one of these paths."""
    lost: dict[str, None] = {}
    for path in filter(None, paths):
        with suppress(StoreError, ValueError):  # a text that is no path
            lost[world.key(path)] = None
    return {**lost, **state.images}


def mark_failed(state: State, step: Step, world: World, *, slow: bool = False) -> State:
    """The state after a failed step: the tensors that it would have created or changed are unknown. `slow`: its pattern
    took too long, so it is not matched again."""
    assert step.op is not None
    if isinstance(step.op, SinkOp):
        return state
    spaces, written = _doubt(state, step.op), set(state.writes)
    refs = list(refs_of(step))
    source = next((ref for _, role, ref in refs if role.is_pattern), None)
    sources = None if source is None else state.spaces.get(source.alias)
    creates = not (isinstance(step.op, TensorOp) and step.op.form.dest == "existing")
    for key, role, ref in refs:
        kept = isinstance(step.op, TensorOp) and not step.op.changes(key)
        if ref.alias in spaces and not kept:
            space = spaces[ref.alias]
            found = None if slow else _find_names(space, role.kind, ref, source, sources)
            left = _without(space, found, creates=creates)
            # the extras that it would have received are unknown
            spaces[ref.alias] = replace(left, tainted=True) if step.unmatched == "keep" else left
            written.add(ref.alias)
    makes = step.op.makes if isinstance(step.op, ControlOp) else None
    alias = "" if makes is None else _alias_of(makes, step, state)
    if alias in spaces:  # it exists already; later steps mean the one that could not be created
        spaces[alias] = replace(spaces[alias], tainted=True)
    images = state.images if step.checkpoint is None else _forget_images(state, (step.checkpoint,), world)
    after = replace(state, spaces=spaces, images=images, doubtful=state.doubtful or makes is not None)
    return after.with_writes(written)


def _alias_of(makes: Makes, step: Step, state: State) -> str:
    """The alias that a step would have created; empty if there is none."""
    given = step.params.get(makes.key)
    return given or ("" if makes.unless in step.params else state.default_alias or makes.fallback)


def refs_of(step: Step) -> Iterator[tuple[str, Role, Ref]]:
    """Every reference of a step, with its key and role."""
    assert step.op is not None
    for f in step.op.fields():
        value = step.params.get(f.param)
        role = f.role or element_role(f.annotation)
        if role is not None and role.is_operands and value:  # only the first can be replaced
            role, value = Role("pattern"), next(iter(value.values()))
        for ref in value if isinstance(value, tuple) else (value,):
            if isinstance(ref, Ref) and role is not None:
                yield f.key, role, ref


def _without(space: Space, names: frozenset[str] | None, *, creates: bool) -> Space:
    """A space in which some tensors are unknown. If the names that the step would have created are unknown too (None),
    a name that seems missing may exist."""
    if names is None:
        return replace(space, tainted=space.tainted or creates)
    left = {n: e for n, e in space.names.items() if n not in names}
    return replace(space, names=left, unknown=space.unknown | names)


def _find_names(space: Space, kind: str, ref: Ref, source: Ref | None, sources: Space | None) -> frozenset[str] | None:
    """The names that a reference of a failed step means; None if they cannot be determined."""
    try:
        return _resolve_names(space, kind, ref, source, sources)
    except Refusal:
        return None


def _resolve_names(
    space: Space, kind: str, ref: Ref, source: Ref | None, sources: Space | None
) -> frozenset[str] | None:
    if kind == "pattern":
        return frozenset(name for name, _ in matching(ref, space.names))
    if kind == "name":
        return frozenset((ref.name,)) if isinstance(ref.name, str) else None
    if source is None or sources is None:
        return None
    template = compile_template(ref.name, pattern_of(source.name))
    if template.literal is not None:
        return frozenset((template.literal,))
    made = frozenset(template.fill(name, binding) for name, binding in matching(source, sources.names))
    return made or None
