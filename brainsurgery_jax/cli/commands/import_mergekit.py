"""`import-mergekit`."""

from __future__ import annotations

from typing import Annotated

import typer

from brainsurgery_jax.cli.options import Json, completing


def import_mergekit(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG.yml", help="A configuration of mergekit.", autocompletion=completing("plan")),
    ],
    out: Annotated[
        str | None, typer.Option(metavar="PLAN.yaml", help="Write the plan there, not to stdout.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let the plan replace what is there.")] = False,
    json: Json = False,
) -> None:
    """Print the plan that does what a mergekit configuration says.

    Linear merges, task arithmetic and stacked layers; what a plan cannot say is an error that names it.
    """
    from brainsurgery_jax.cli import importing

    importing.import_mergekit(config, out, overwrite=overwrite, json=json)
