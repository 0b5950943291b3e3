"""Steps made of plain data, with the checks of steps that a plan file spells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainsurgery_jax.errors import Diagnostic, Span
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.plan.parse import parse_step
from brainsurgery_jax.plan.source import List, Map, Node, Scalar
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.select import Ref


def build_step(substep: Substep, span: Span | None, default_alias: str | None) -> tuple[Step, tuple[Diagnostic, ...]]:
    """The step that an expansion asks for, and everything that is wrong with it. `span`: the place of the step that
    expands, where all diagnostics point."""
    place = span or Span("", 0, 0)
    return parse_step(node_of({substep.op: substep.payload}, place), default_alias)


def node_of(value: Any, span: Span) -> Node:
    """Plain data, and references among it, as a node at one place."""
    match value:
        case Ref():
            return node_of(_plain(value), span)
        case Mapping():
            return Map(tuple((Scalar(str(k), str(k), span), node_of(v, span)) for k, v in value.items()), span)
        case list() | tuple():
            return List(tuple(node_of(item, span) for item in value), span)
    return Scalar(value, str(value), span)


def _plain(ref: Ref) -> dict[str, object]:
    parts = {"slice": None if ref.index is None else str(ref.index), "kind": ref.kind}
    return {"alias": ref.alias, "name": ref.name, **{key: part for key, part in parts.items() if part is not None}}
