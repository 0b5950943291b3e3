"""Hints that propose a cast: what they say to cast is named where the step reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from brainsurgery_jax.dtypes import parse_dtype
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.view import StepView
from brainsurgery_jax.select import Ref
from brainsurgery_jax.wording import quoted

_CAST = re.compile(r"`cast_: \{target: \.\.\., to: (\w+)\}`")


class CastOperand(NamedTuple):
    """A tensor that a step reads: the reference that means it, whether that is the pattern, its name and value."""

    ref: Ref
    is_pattern: bool
    name: str
    expr: Expr


def name_casts(hint: str, view: StepView, operands: Iterable[CastOperand], *, matches: int) -> str:
    """A hint whose cast names the operands of another dtype. It stays as it is where a step that casts one of them
    would leave others of `matches` as they are."""
    if (found := _CAST.search(hint)) is None:
        return hint
    dtype = parse_dtype(found[1])
    targets = [_target(view, each, matches) for each in operands if each.expr.aval.dtype != dtype]
    if not targets or None in targets:
        return hint
    casts = " and ".join(f"`cast_: {{target: {target}, to: {found[1]}}}`" for target in dict.fromkeys(targets))
    return hint.replace(found[0], casts)


def _target(view: StepView, each: CastOperand, matches: int) -> str | None:
    """The pattern that means an operand and its like, as it is written in a plan; None if there is none."""
    ref = each.ref
    if matches == 1:
        return _text(view, ref, re.escape(each.name))
    if not each.is_pattern or not isinstance(ref.name, str) or ref.kind is not None:
        return None
    alike = {item.expr.aval.dtype for item in view.select(ref)} == {each.expr.aval.dtype}
    return _text(view, ref, ref.name) if alike else None


def _text(view: StepView, ref: Ref, pattern: str) -> str:
    written = pattern if ref.alias == view.default_alias else f"{ref.alias}::{pattern}"
    return quoted(written)
