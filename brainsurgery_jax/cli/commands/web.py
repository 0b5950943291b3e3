"""`web`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Memory


def web(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH...]", help="Checkpoints to open.", show_default=False)
    ] = None,
    root: Annotated[str, typer.Option(metavar="FOLDER", help="The folder that the page may read and write.")] = ".",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port; 0: any that is free.", min=0, max=65535)] = 0,
    allow_torch: Annotated[
        bool, typer.Option("--allow-torch", help="Open torch files too, whose pickles need trust.")
    ] = False,
    upload_limit: Annotated[str, typer.Option(metavar="SIZE", help="Maximum size of an upload.")] = "1GB",
    memory: Memory = None,
) -> None:
    """Open a workbench in the browser: look, try, run, compare. Needs `pip install brainsurgery-jax[web]`."""
    if find_spec("nicegui") is None:
        raise typer.BadParameter("the workbench needs NiceGUI: pip install 'brainsurgery-jax[web]'")
    arrange(os.environ, compile_cache=True)
    from brainsurgery_jax.cli import web as command

    command.web(paths or [], command.WebChoices(root, host, port, allow_torch, upload_limit, memory))
