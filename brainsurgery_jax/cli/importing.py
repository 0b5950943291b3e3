"""`import-mergekit`: configurations of other tools, as plans."""

from __future__ import annotations

from pathlib import Path

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.importers.mergekit import plan_of


def import_mergekit(config: str, out: str | None, *, overwrite: bool) -> None:
    """Print the plan of a mergekit configuration, or write it to a file. Raises PlanError or StoreError."""
    text = plan_of(config)
    if out is None:
        show.result(text.rstrip("\n"))
        return
    path = Path(out).expanduser()
    if path.exists() and not overwrite:
        raise typer.BadParameter(f"'{out}' exists; --overwrite lets the plan replace it", param_hint="--out")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(path, f"the plan cannot be written: {error.strerror}") from error
    show.remark(f"wrote {out}; `brainsurgery-jax check {out}` tells whether it fits the models", "green")
