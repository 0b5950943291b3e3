"""`demo`."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    keep: Annotated[
        str | None, typer.Option(metavar="DIR", help="Make the files there, and leave them.", show_default=False)
    ] = None,
) -> None:
    """Run a worked plan on a small checkpoint.

    Makes both, then checks, explains and runs the plan and inspects the result.
    """
    from brainsurgery_jax.cli import demo as worked

    worked.demo(keep)
