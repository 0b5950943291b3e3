"""`diff`: compare two checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Json, Memory, Plot, ReplacePlot, Target, spread_groups


class DiffOrder(StrEnum):
    """In which order `diff` lists tensors."""

    by_name = "name"
    change = "change"
    cosine = "cosine"
    rank = "rank"


class DiffGroups(StrEnum):
    """What `diff` sums up by."""

    layer = "layer"
    module = "module"


@dataclass(frozen=True)
class Closeness:
    """How different two tensors may be that count as equal."""

    eps: Annotated[float, typer.Option(metavar="X", help="Absolute tolerance.", min=0)] = 0.0
    rtol: Annotated[
        float, typer.Option(metavar="X", help="Relative tolerance, as a fraction of the left value.", min=0)
    ] = 0.0
    ignore_dtype: Annotated[bool, typer.Option("--ignore-dtype", help="Compare values but not dtypes.")] = False


EXACT = Closeness()


@spread_groups
def diff(
    left: Annotated[str, typer.Argument(metavar="LEFT", help="A checkpoint file or folder.")],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="A second checkpoint, in any format.")],
    target: Target = None,
    closeness: Closeness = EXACT,
    quick: Annotated[
        bool, typer.Option("--quick", help="Report no figures; stop reading a tensor at its first difference.")
    ] = False,
    effective_rank: Annotated[
        bool, typer.Option("--effective-rank", help="Also factorize the differences of matrices, which takes longer.")
    ] = False,
    sort: Annotated[
        DiffOrder, typer.Option("--sort", help="List the most changed first; by rank implies --effective-rank.")
    ] = DiffOrder.by_name,
    top: Annotated[
        int | None, typer.Option(metavar="N", help="List only the first N tensors or groups.", min=1)
    ] = None,
    by: Annotated[
        DiffGroups | None, typer.Option("--by", help="Sum up what differs in value.", show_default=False)
    ] = None,
    plot: Plot = None,
    overwrite: ReplacePlot = False,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Compare two checkpoints: names, shapes, dtypes, values.

    NaN equals NaN, and -0 equals 0. The exit code is 0 if the checkpoints are equal, 1 if they differ, and 2 if they
    cannot be compared.
    """
    arrange(os.environ, compile_cache=False)
    from brainsurgery_jax.cli import diff as pages
    from brainsurgery_jax.cli.plotting import wish_plot

    drawn = wish_plot(plot, overwrite=overwrite)
    if quick and (by or plot or effective_rank or sort is not DiffOrder.by_name):
        raise typer.BadParameter(
            "--quick measures nothing to sort by or to sum up. Leave it out.", param_hint="--quick"
        )
    wishes = pages.Wishes(
        target, closeness.eps, closeness.rtol, closeness.ignore_dtype, quick, memory,
        effective_rank or sort is DiffOrder.rank, sort.value, top, by.value if by else None,
    )  # fmt: skip
    raise typer.Exit(pages.diff(left, right, wishes, json=json, plot=drawn))
