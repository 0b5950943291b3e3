"""`ops` and `schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from brainsurgery_jax.cli.options import Json, Ops, completing, know


def ops_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="An op, an assert operator (assert.NAME), or a word to search for.",
            autocompletion=completing("op"),
        ),
    ] = None,
    ops: Ops = None,
    json: Json = False,
) -> None:
    """List all ops, or describe one."""
    know(ops)
    from brainsurgery_jax.cli import ops as pages

    pages.ops(name, json=json)


def schema(
    ops: Ops = None,
    where: Annotated[bool, typer.Option("--where", help="Print the path of the installed schema instead.")] = False,
) -> None:
    """Print the JSON Schema of plans, for editors."""
    know(ops)
    from brainsurgery_jax.cli import ops as pages

    pages.schema(where=where)
