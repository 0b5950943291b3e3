"""`repl`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import (
    Devices,
    Fsync,
    Json,
    Memory,
    Ops,
    Overwrite,
    Quiet,
    Shard,
    Verbose,
    completing,
    know,
)


def repl(
    items: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PLAN.yaml | CKPT] [PATH=VALUE]",
            help="A plan to run first, or checkpoints to open.",
            autocompletion=completing("items"),
            show_default=False,
        ),
    ] = None,
    ops: Ops = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and compute, but write nothing.")] = False,
    fsync: Fsync = True,
    shard_size: Shard = "5GB",
    memory: Memory = None,
    devices: Devices = "all",
    preview: Annotated[
        bool, typer.Option("--preview", help="Before each step, show its effects and ask for confirmation.")
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Open an interactive prompt for editing checkpoints.

    Type steps, see their effects, undo them, and save them as a plan. A plan given here runs first, and its output is
    written when you leave. Without a terminal, steps are read from stdin.
    """
    arrange(os.environ, compile_cache=True)
    know(ops)
    from brainsurgery_jax.cli import plans
    from brainsurgery_jax.cli.prompt import repl as prompt

    choices = plans.Choices(
        overwrite=overwrite, dry_run=dry_run, fsync=fsync, shard_size=shard_size, memory=memory, devices=devices,
        preview=preview, verbose=verbose, quiet=quiet, json=json,
    )  # fmt: skip
    prompt.repl(items or [], choices)
