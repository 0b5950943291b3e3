"""`recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from brainsurgery_jax.cli.options import Json, completing


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A recipe, or a word to search for.", autocompletion=completing("recipe")
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the plans that come with the package, or describe one.

    Run one by its name: `brainsurgery-jax run recipe:NAME VARIABLE=VALUE ...`.
    """
    from brainsurgery_jax.cli import recipes as pages

    pages.recipes(name, json=json)
