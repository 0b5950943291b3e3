"""`ops` and `schema`: what the registry knows, as a table, as a page, as JSON."""

from __future__ import annotations

import inspect
import json as jsonlib

import typer

import brainsurgery_jax.ops  # noqa: F401  (fills the registry)
from brainsurgery_jax import plugins
from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import ASSERTS, OPS, Op, element_role
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.schema import plan_schema


def schema() -> None:
    """Print the JSON Schema of plans."""
    show.diagnostics(plugins.look_up())
    show.result(jsonlib.dumps(plan_schema(), indent=2))


def ops(name: str | None, *, json: bool) -> None:
    """Print the table of all ops, or the page of one."""
    if name is None:
        show.diagnostics(plugins.look_up())
        if json:
            show.json(ops=[_as_json(o) for o in OPS.values()], asserts=[_as_json(o) for o in ASSERTS.values()])
        else:
            show.result("\n".join(pages.overview(show.hanging)))
        return
    try:
        op = pages.find(name)
    except Refusal as bad:
        raise typer.BadParameter(bad.message, param_hint="NAME") from bad
    if json:
        show.json(**_as_json(op))
    else:
        show.result("\n".join(pages.page(op, show.hanging)))


def _as_json(op: Op) -> dict[str, object]:
    keys = [
        {
            "key": f.key,
            "required": f.default is inspect.Parameter.empty,
            "default": None if f.default is inspect.Parameter.empty else f.default,
            "kind": pages.kind(f),
            "slices": bool((role := f.role or element_role(f.annotation)) and role.slices),
        }
        for f in pages.keys(op)
    ]
    return {"name": op.name, "family": pages.family(op), "doc": op.doc, "keys": keys}
