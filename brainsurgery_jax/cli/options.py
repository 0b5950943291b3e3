"""The options that several commands take, and what completes arguments in a shell. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer


def completing(what: str) -> Callable[[Any, str], list[tuple[str, str]]]:
    """The shell completion of an argument. Imports only the modules that it needs."""

    def complete(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        from brainsurgery_jax.cli import shells

        return shells.complete(what, ctx.params | {shells.REST: ctx.args}, incomplete)

    return complete


def know(ops: Sequence[str] | None) -> None:
    """Register the ops of the user's files; not before `arrange`, since they may import JAX."""
    if ops:
        from brainsurgery_jax import plugins

        plugins.register(*ops)


Items = Annotated[
    list[str],
    typer.Argument(
        metavar="PLAN.yaml [PATH=VALUE]",
        help="Plan files or recipes (recipe:NAME), merged in order, and overrides.",
        autocompletion=completing("items"),
    ),
]
Ops = Annotated[
    list[str] | None,
    typer.Option(
        "--ops",
        metavar="FILE.py",
        help="Load user-defined ops from this file.",
        show_default=False,
        autocompletion=completing("python"),
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Shard = Annotated[
    str,
    typer.Option(
        "--shard-size", metavar="SIZE", help="Maximum size of a file in an output folder, unless the plan sets one."
    ),
]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory budget (default: a quarter of the available memory).")
]
Devices = Annotated[str, typer.Option(metavar="N|all|cpu", help="Number of accelerators to use; cpu: none.")]
Fsync = Annotated[bool, typer.Option("--fsync/--no-fsync", help="Flush files to disk before publishing them.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every tensor that a step creates.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.")]
Target = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Only tensors whose full names match.", autocompletion=completing("tensor")),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ReplacePlot = Annotated[bool, typer.Option("--overwrite", help="Replace FILE of --plot if it is there.")]
Plot = Annotated[
    str | None,
    typer.Option("--plot", metavar="FILE", help="Also draw a picture: .svg, .png or .html. Needs the extra `plot`."),
]
