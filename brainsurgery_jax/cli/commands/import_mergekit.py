"""`import-mergekit`."""

from __future__ import annotations

from typing import Annotated

import typer

from brainsurgery_jax.cli.options import Json, completing


def import_mergekit(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG.yml",
            help="A configuration of mergekit or mergekit-moe, or in quotes a command line of mergekit-extract-lora.",
            autocompletion=completing("plan"),
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(metavar="PLAN.yaml", help="Write the plan to this file instead of stdout.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing plan file.")] = False,
    json: Json = False,
) -> None:
    """Translate a mergekit configuration to a plan.

    Prints the plan. An unsupported setting is an error that names it.
    """
    from brainsurgery_jax.cli import importing

    importing.import_mergekit(config, out, overwrite=overwrite, json=json)
