"""`spectrum`: singular values of matrices, or of the difference of two checkpoints."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Json, Memory, Plot, ReplacePlot, Target


def spectrum(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint file or folder.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="A second one: look at the change from PATH to it.")
    ] = None,
    target: Target = None,
    rank: Annotated[
        int | None, typer.Option(metavar="N", help="Also print the N largest singular values.", min=1)
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(metavar="N", help="Compute only the N largest singular values, which is quicker.", min=1),
    ] = None,
    plot: Plot = None,
    overwrite: ReplacePlot = False,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Compute the singular values of matrices: how many ranks capture 90, 95 and 99 % of the energy."""
    arrange(os.environ, compile_cache=False)
    from brainsurgery_jax.cli import spectrum as pages
    from brainsurgery_jax.cli.plotting import wish_plot

    drawn = wish_plot(plot, overwrite=overwrite)
    pages.spectrum((path, other), target, rank, memory=memory, json=json, most=most, plot=drawn)
