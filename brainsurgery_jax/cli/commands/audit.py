"""`audit`: which errors the checks of a plan see."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Items, Json, Ops, know


def audit(
    items: Items,
    ops: Ops = None,
    each: Annotated[
        int, typer.Option(metavar="COUNT", help="Errors of each sort that are planted, at most.", min=1)
    ] = 3,
    suggestions: Annotated[
        bool, typer.Option("--suggest/--no-suggest", help="Try asserts that see what the plan misses.")
    ] = True,
    at_least: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Exit with 1 if a smaller share is seen.", min=0, max=1)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every planted error.")] = False,
    json: Json = False,
) -> None:
    """Plant errors into a plan and its inputs, and report which of its checks see them.

    Each error is tried alone, on small stand-ins for the checkpoints, in memory: nothing is written. The exit code is 0
    for an audit that was completed, 1 for a plan with mistakes or a share below `--at-least`, and 3 for a checkpoint
    that cannot be read.
    """
    arrange(os.environ, compile_cache=True)
    know(ops)
    from brainsurgery_jax.cli import audit as pages

    raise typer.Exit(pages.audit(items, pages.AuditChoices(each, suggestions, at_least, verbose), json=json))
