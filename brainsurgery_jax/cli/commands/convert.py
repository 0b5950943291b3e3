"""`convert` and `layouts`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import Fsync, Json, Lock, LockAt, Memory, Overwrite, completing

Layout = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Layout, library (tunix) or none (default: recognised).",
        show_default=False,
        autocompletion=completing("layout"),
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="Output format: safetensors, orbax, torch, npz, ...",
        show_default=False,
        autocompletion=completing("format"),
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Cast floating-point tensors to this dtype.",
        show_default=False,
        autocompletion=completing("dtype"),
    ),
]
Overflow = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="How to cast values that overflow the dtype: saturate or nan (default: as torch does).",
        show_default=False,
    ),
]
Dequantize = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Make floats of quantized weights, by the scales beside them.",
        show_default=False,
        autocompletion=completing("dtype"),
    ),
]
Scan = Annotated[
    bool | None,
    typer.Option("--scan/--no-scan", help="Stack the layers, or keep them separate.", show_default=False),
]
Option = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Set another option of the layout.", show_default=False),
]
Config = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Path of config.json (default: the one beside SRC).", show_default=False),
]
WithOptState = Annotated[bool, typer.Option("--with-opt-state", help="Also convert the optimizer's moments.")]
ShardSize = Annotated[
    str | None,
    typer.Option(
        "--shard-size", metavar="SIZE", help="Maximum size of a file in an output folder.", show_default=False
    ),
]


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint file or folder.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="The folder or file to write.")],
    layout: Layout = None,
    to: To = None,
    dtype: Dtype = None,
    overflow: Overflow = None,
    dequantize: Dequantize = None,
    scan: Scan = None,
    option: Option = None,
    config: Config = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the result back and compare every byte.")] = False,
    with_opt_state: WithOptState = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything but write nothing.")] = False,
    fsync: Fsync = True,
    shard_size: ShardSize = None,
    lock: Lock = None,
    lock_at: LockAt = None,
    memory: Memory = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every tensor that is written.")] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint to another format or naming.

    Converts between file formats, and between Hugging Face names and the trees of JAX libraries. The model and the
    direction are recognised from config.json and the tensor names. Run `layouts` to list the supported layouts.
    """
    arrange(os.environ, compile_cache=True)
    from brainsurgery_jax.cli import convert as pages
    from brainsurgery_jax.cli.sizes import size_of
    from brainsurgery_jax.run_options import RunOptions

    options = pages.options_of(option or ()) | ({} if scan is None else {"scan": scan})
    request = pages.Request(
        layout, to, dtype, options, config, overwrite, verify, with_opt_state, shard_size, overflow, dequantize
    )
    chosen = RunOptions(memory=size_of(memory, "--memory"), durable=fsync, dry_run=dry_run, lock=lock_at or lock)
    pages.convert(source, destination, request, chosen, pages.Verbosity(quiet, verbose, json))


def layouts(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[check] [NAME]",
            help="A layout to show; `check` verifies one or all.",
            show_default=False,
            autocompletion=completing("layouts"),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List, show or verify the layouts that `convert` supports.

    Verification proves that names map one to one, that shapes match and that every op has an inverse. It lists the
    rules that lose bits.
    """
    from brainsurgery_jax.cli import convert as pages

    raise typer.Exit(pages.layouts(words or [], json=json))
