"""`diff`: two checkpoints beside each other."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Json, completing


def diff(
    left: Annotated[str, typer.Argument(metavar="LEFT", help="A checkpoint file or folder.")],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="Another, of the same or another format.")],
    target: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only names that match in full.", autocompletion=completing("tensor")),
    ] = None,
    eps: Annotated[float, typer.Option(metavar="X", help="Values may differ by this much.", min=0)] = 0.0,
    rtol: Annotated[float, typer.Option(metavar="X", help="And by this part of the left value.", min=0)] = 0.0,
    ignore_dtype: Annotated[bool, typer.Option("--ignore-dtype", help="Compare values alone.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="No figures: stop reading a tensor at its first difference.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Hold no more than this (default: a quarter of what is free).")
    ] = None,
    json: Json = False,
) -> None:
    """Compare two checkpoints: names, shapes, dtypes and values.

    NaN equals NaN, -0 equals 0. The exit code is 0 if they are the same, 1 if they differ, 2 if that cannot be told.
    """
    arrange(os.environ, compile_cache=False)
    from brainsurgery_jax.cli import diff as pages

    wishes = pages.Wishes(target, eps, rtol, ignore_dtype, quick, memory)
    raise typer.Exit(pages.diff(left, right, wishes, json=json))
