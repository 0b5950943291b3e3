"""`ops` and `schema`: what the registry knows, as a table, as a page, as JSON."""

from __future__ import annotations

import json as jsonlib

import typer

import brainsurgery_jax.ops  # noqa: F401  (says which ops there are)
from brainsurgery_jax import plugins
from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.packaged import find_packaged_folder
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.schema import plan_schema
from brainsurgery_jax.rendering.data import record_data
from brainsurgery_jax.reports.ops import report_op, report_ops, report_search


def schema(*, where: bool) -> None:
    """Print the JSON Schema of plans, or the path of the one that is installed, which knows no ops of the user."""
    if where:
        show.result(str(find_packaged_folder("recipes", "plans") / "schema.json"))
        return
    show.diagnostics(plugins.look_up())
    show.result(jsonlib.dumps(plan_schema(), indent=2))


def ops(name: str | None, *, json: bool) -> None:
    """Print the table of all ops, the page of one, or a table of those in which a word is found."""
    if name is None:
        show.diagnostics(plugins.look_up())
        report = report_ops(show.hanging)
    else:
        try:
            report = report_op(pages.find(name), show.hanging)
        except Refusal as bad:
            if found := pages.search(name):
                report = report_search(name, found, show.hanging)
            else:
                raise typer.BadParameter(bad.message, param_hint="NAME") from bad
    if json:
        show.json(**record_data(report))
    else:
        show.report(report)
