"""`import-mergekit`: configurations of other tools, as plans."""

from __future__ import annotations

from pathlib import Path

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.importers.mergekit import import_plan


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
    path = Path(out).expanduser()
    if path.exists() and not overwrite:
        raise typer.BadParameter(f"'{out}' exists; to replace it, add --overwrite", param_hint="--out")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(path, f"the plan cannot be written: {error.strerror}") from error
    if json:
        show.json(plan=imported.data(), path=out)
        return
    show.remark(f"wrote {out}; `brainsurgery-jax check {out}` checks it against the models", "green")
