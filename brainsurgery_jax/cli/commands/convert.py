"""`convert` and `layouts`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Fsync, Json, Memory, Overwrite, completing


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint file or folder.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Where to write: a folder, or a file.")],
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A layout, the library it is for (tunix), or none; else recognised.",
            show_default=False,
            autocompletion=completing("layout"),
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="safetensors, orbax, torch, npz, ...",
            show_default=False,
            autocompletion=completing("format"),
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Cast floating tensors to this.",
            show_default=False,
            autocompletion=completing("dtype"),
        ),
    ] = None,
    overflow: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="What becomes of values beyond the dtype's largest: saturate, or nan; else as in torch.",
            show_default=False,
        ),
    ] = None,
    scan: Annotated[
        bool | None, typer.Option("--scan/--no-scan", help="Stack layers, or keep them apart.", show_default=False)
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Another option of the layout.", show_default=False)
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="config.json, if not beside SRC.", show_default=False)
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the result back and compare every byte.")] = False,
    with_opt_state: Annotated[
        bool, typer.Option("--with-opt-state", help="Convert an optimizer's moments, too.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and write nothing.")] = False,
    fsync: Fsync = True,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", metavar="SIZE", help="Largest file of a folder.", show_default=False)
    ] = None,
    memory: Memory = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint between formats, and between Hugging Face's names and JAX libraries' trees.

    The model and the direction are recognised from config.json and from the names. `layouts` lists what is known.
    """
    arrange(os.environ, compile_cache=True)
    from brainsurgery_jax.cli import convert as pages
    from brainsurgery_jax.run_options import RunOptions

    options = pages.options_of(option or ()) | ({} if scan is None else {"scan": scan})
    request = pages.Request(layout, to, dtype, options, config, overwrite, verify, with_opt_state, shard_size, overflow)
    budget = None if memory is None else pages.size_of(memory, "--memory")
    chosen = RunOptions(memory=budget, durable=fsync, dry_run=dry_run)
    pages.convert(source, destination, request, chosen, quiet=quiet, json=json)


def layouts(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[check] [NAME]",
            help="One layout; or `check`, to prove one or all.",
            show_default=False,
            autocompletion=completing("layouts"),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the layouts that `convert` knows, show one, or prove them.

    The proof: names go one to one, shapes close, every op has an inverse; rules that lose bits are named.
    """
    from brainsurgery_jax.cli import convert as pages

    raise typer.Exit(pages.layouts(words or [], json=json))
