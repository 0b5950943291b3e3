"""Hints for a step that fails on some tensors because of their dtype, and would succeed on others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.edits import Drafts
from brainsurgery_jax.lower.failure import refs_of
from brainsurgery_jax.lower.program import Effect, flatten
from brainsurgery_jax.lower.state import matching
from brainsurgery_jax.op import TensorOp
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.select import KINDS, Ref, kind_of
from brainsurgery_jax.wording import quoted


def remedy(drafts: Drafts, bad: Refusal) -> str:
    """The hint that excludes tensors which the step cannot process, and what happens to them. Empty if that is no
    remedy: the pattern has a `kind` already, or matches only such tensors."""
    key, ref = next(_patterns(drafts), ("", None))
    if not bad.kinds or ref is None or ref.kind is not None:
        return ""
    space = drafts.state.spaces[ref.alias].names if ref.alias in drafts.state.spaces else {}
    counts = _counts(ref, space)
    fitting = [kind for kind in KINDS if counts[kind] and kind in bad.kinds]  # floats first: buffers are rarely meant
    rest = [kind for kind in counts if kind not in bad.kinds]
    if not fitting or not rest:
        return ""
    default = drafts.state.default_alias
    chosen = f"Write `{as_mapping(ref, default, fitting[0])}` for `{key}`"
    if (to := _find_new_template(drafts, ref)) is None:
        return f"{chosen}: what is of another kind stays as it is."
    if ref.index is not None:
        return f"{chosen}: what is of another kind is left out."
    others = [kind for kind in counts if kind != fitting[0]]
    steps = (f"`copy: {{from: {as_mapping(ref, default, kind)}, to: {_as_text(to, default)}}}`" for kind in others)
    return f"{chosen}, and take the others along by {' and '.join(steps)}."


@contextmanager
def literal_hints(effects: Iterable[Effect], default: str | None) -> Iterator[None]:
    """A context whose errors get hints with the references of their steps."""
    try:
        yield
    except PlanError as bad:
        steps = [effect.step for effect in flatten(effects)]
        raise PlanError(_name_pattern(found, steps, default) for found in bad.diagnostics) from bad


def _name_pattern(found: Diagnostic, steps: Sequence[Step], default: str | None) -> Diagnostic:
    """A diagnostic of a run. If its text narrows a reference, the reference of the step is filled in."""
    for step in steps:
        if step.span == found.span and step.op is not None and PLACEHOLDER in found.message + found.hint:
            for ref in (ref for _, role, ref in refs_of(step) if role.is_pattern):
                meant = as_mapping(ref, default, "float")
                texts = (text.replace(PLACEHOLDER, meant) for text in (found.message, found.hint))
                return replace(found, **dict(zip(("message", "hint"), texts, strict=True)))
    return found


PLACEHOLDER = "{alias: ALIAS, name: PATTERN, kind: float}"
"""The placeholder in hints of kernels, which do not know the reference."""


def _patterns(drafts: Drafts) -> Iterator[tuple[str, Ref]]:
    """The patterns of a step with their keys; of named operands the first, with its name."""
    for key, role, ref in refs_of(drafts.step):
        if role.is_pattern:
            named = [n for v in drafts.step.params.values() if isinstance(v, Mapping) for n, r in v.items() if r is ref]
            yield (named[0] if named else key), ref


def _counts(ref: Ref, names: Mapping[str, Expr]) -> Counter[str]:
    found = (names[name] for name, _ in matching(ref, names))
    return Counter(kind_of(e.aval.dtype) for e in found if not e.is_poison)


def _find_new_template(drafts: Drafts, ref: Ref) -> Ref | None:
    """The template of the names that a step creates, if it creates new tensors."""
    op = drafts.step.op
    if op is None or (isinstance(op, TensorOp) and op.form.dest == "existing"):
        return None
    refs = [ref for ref in map(drafts.step.params.get, (f.param for f in op.destinations)) if isinstance(ref, Ref)]
    return refs[0] if len(refs) == 1 else None


def as_mapping(ref: Ref, default: str | None, kind: str) -> str:
    """A reference with a kind, as it is written in a plan."""
    alias = "" if ref.alias == default else f"alias: {ref.alias}, "
    part = "" if ref.index is None else f", slice: {quoted(str(ref.index))}"
    return f"{{{alias}name: {_name(ref)}{part}, kind: {kind}}}"


def _as_text(ref: Ref, default: str | None) -> str:
    if isinstance(ref.name, str):
        return quoted(ref.name if ref.alias == default else f"{ref.alias}::{ref.name}")
    return _name(ref) if ref.alias == default else f"{{alias: {ref.alias}, name: {_name(ref)}}}"


def _name(ref: Ref) -> str:
    return quoted(ref.name) if isinstance(ref.name, str) else f"[{', '.join(map(quoted, ref.name))}]"
