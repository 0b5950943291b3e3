"""`report`: a page of HTML about a checkpoint, or about how two differ."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Json, Memory, Target


def report(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint file or folder.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="A second one: report how it differs from PATH.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="The page to write (default: NAME.report.html).")
    ] = None,
    target: Target = None,
    spectra: Annotated[
        bool, typer.Option("--spectra", help="Also factorize the matrices, or their differences, which takes longer.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Write a report as one page of HTML: health, figures, pictures. It needs the extra `plot`."""
    arrange(os.environ, compile_cache=False)
    from brainsurgery_jax.cli import report as pages

    pages.report((path, other), to, pages.ReportWishes(target, spectra, overwrite, memory), json=json)
