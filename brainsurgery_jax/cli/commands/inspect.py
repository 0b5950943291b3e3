"""`inspect`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from brainsurgery_jax.cli.options import Json, Plot, ReplacePlot, Target


class TreeFormat(StrEnum):
    """How `inspect` prints names."""

    compact = "compact"
    tree = "tree"
    json = "json"


def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint file or folder.")],
    target: Target = None,
    format: Annotated[TreeFormat, typer.Option("--format", help="How to print the names.")] = TreeFormat.compact,
    stats: Annotated[
        bool, typer.Option("--stats", help="Also read the tensors: min, max, mean, std, norm, zeros, NaN, infinity.")
    ] = False,
    fingerprint: Annotated[
        bool, typer.Option("--fingerprint", help="Print only the fingerprint of the content; reads every tensor.")
    ] = False,
    histogram: Annotated[
        bool, typer.Option("--histogram", help="Also draw a histogram of each tensor; JSON has its bins and quantiles.")
    ] = False,
    effective_rank: Annotated[
        bool, typer.Option("--effective-rank", help="Also factorize the matrices, which takes longer.")
    ] = False,
    blame: Annotated[
        str | None,
        typer.Option("--blame", metavar="NAME", help="Print which inputs and steps made a tensor, by its lock."),
    ] = None,
    plot: Plot = None,
    overwrite: ReplacePlot = False,
    json: Json = False,
) -> None:
    """List the tensors of a checkpoint, from its headers."""
    from brainsurgery_jax.cli import inspect_ as pages
    from brainsurgery_jax.cli.plotting import wish_plot

    if blame is not None:
        from brainsurgery_jax.cli import provenance

        raise typer.Exit(provenance.print_blame(checkpoint, blame, json=json or format is TreeFormat.json))
    if fingerprint:
        raise typer.Exit(pages.print_fingerprint(checkpoint, as_json=json or format is TreeFormat.json))
    looks = pages.Looks(histogram, effective_rank, wish_plot(plot, overwrite=overwrite))
    raise typer.Exit(pages.inspect(checkpoint, target, "json" if json else format.value, stats=stats, looks=looks))
