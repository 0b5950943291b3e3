"""`repl`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import (
    DESTINATION,
    PRINTING,
    RESOURCES,
    Destination,
    Ops,
    Printing,
    Resources,
    completing,
    know,
    spread_groups,
)


@spread_groups
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
    destination: Destination = DESTINATION,
    resources: Resources = RESOURCES,
    printing: Printing = PRINTING,
) -> None:
    """Open an interactive prompt for editing checkpoints.

    Type steps, see their effects, undo them, and save them as a plan. A plan given here runs first, and its output is
    written when you leave. Without a terminal, steps are read from stdin.
    """
    arrange(os.environ, compile_cache=True)
    know(ops)
    from brainsurgery_jax.cli import plans
    from brainsurgery_jax.cli.prompt import repl as prompt

    choices = plans.Choices(**vars(destination), **vars(resources), **vars(printing))
    prompt.repl(items or [], choices)
