"""`verify` and `replay`: outputs and their locks."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import RESOURCES, Json, Memory, Ops, Overwrite, Resources, know, spread_groups

Locked = Annotated[str, typer.Argument(metavar="OUTPUT|LOCK", help="An output written with `--lock`, or its lock.")]


def verify(
    path: Locked,
    at: Annotated[
        str | None, typer.Option("--at", metavar="PATH", help="Where the output is, if not where the lock says.")
    ] = None,
    inputs: Annotated[
        bool, typer.Option("--also-inputs", help="Also compare the checkpoints that it was made of; reads them.")
    ] = False,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Check that an output is still what its lock says. The exit code is 1 if it is not.

    Compares names, shapes, dtypes, every element and side files, and prints each tensor or file that differs.
    """
    arrange(os.environ, compile_cache=False)
    from brainsurgery_jax.cli import provenance

    raise typer.Exit(provenance.verify_output(path, at, inputs=inputs, memory=memory, json=json))


@spread_groups
def replay(
    path: Locked,
    to: Annotated[
        str | None, typer.Option("--to", metavar="PATH", help="Keep the new output at this path, with its lock.")
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="ALIAS=PATH", help="Where an input is, if not where the lock says."),
    ] = None,
    ops: Ops = None,
    overwrite: Overwrite = False,
    resources: Resources = RESOURCES,
    json: Json = False,
) -> None:
    """Make an output again from the plan in its lock, and compare the two. The exit code is 1 if they differ."""
    arrange(os.environ, compile_cache=True)
    know(ops)
    from brainsurgery_jax.cli import provenance

    options = provenance.replay_options(resources.memory, resources.devices, overwrite=overwrite)
    raise typer.Exit(provenance.replay_output(path, to, given or (), options, json=json))
