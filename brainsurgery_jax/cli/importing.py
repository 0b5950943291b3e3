"""`import-mergekit`: configurations of other tools, as plans."""

from __future__ import annotations

import os

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.importers.mergekit import import_plan
from brainsurgery_jax.plan.written import write_plan


def import_mergekit(config: str, out: str | None, *, overwrite: bool, json: bool = False) -> None:
    """Print the plan of a mergekit configuration, or write it to a file. Raises PlanError or StoreError."""
    imported = import_plan(config)
    text = imported.text()
    if out is None:
        if json:
            show.json(plan=imported.data(), path=None)
        else:
            show.result(text.rstrip("\n"))
        return
    if os.path.lexists(os.path.expanduser(out)) and not overwrite:
        raise typer.BadParameter(f"'{out}' exists; to replace it, add --overwrite", param_hint="--out")
    write_plan(out, text)
    if json:
        show.json(plan=imported.data(), path=out)
        return
    show.remark(f"wrote {out}; `brainsurgery-jax check {out}` checks it against the models", "green")
