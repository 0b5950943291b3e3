"""`demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from brainsurgery_jax.cli.options import Json


def demo(
    keep: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Create the files in this folder and keep them.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Run an example plan on a small checkpoint.

    Creates both, then checks, explains and runs the plan, and inspects the result.
    """
    from brainsurgery_jax.cli import demo as worked

    worked.demo(keep, json=json)
