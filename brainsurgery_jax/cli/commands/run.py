"""`run`."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import (
    Devices,
    Fsync,
    Items,
    Json,
    Memory,
    Ops,
    Overwrite,
    Quiet,
    Shard,
    Verbose,
    know,
)

Lost = Annotated[str | None, typer.Option(hidden=True)]


class SummaryMode(StrEnum):
    """What a summary holds: the steps as run, or a whole plan that can be run again."""

    raw = "raw"
    resolve = "resolve"


def run(
    items: Items,
    ops: Ops = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Evaluate asserts and dumps, but write nothing.")] = False,
    fsync: Fsync = True,
    shard_size: Shard = "5GB",
    memory: Memory = None,
    devices: Devices = "all",
    summarize: Annotated[
        bool | None,
        typer.Option(
            "--summarize/--no-summarize",
            "-s",
            help="After the run, print the executed steps as YAML.",
            show_default="no",
        ),
    ] = None,
    summarize_path: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the summary to this file instead of stdout.")
    ] = None,
    summary_mode: Annotated[
        SummaryMode, typer.Option(help="raw: steps only; resolve: inputs and output too.")
    ] = SummaryMode.raw,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="After the plan, open the prompt; write the output on leaving.")
    ] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Before each step, show what it will change.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    json: Json = False,
    compile_cache: Annotated[
        bool, typer.Option("--compile-cache/--no-compile-cache", help="Cache compiled kernels in your cache folder.")
    ] = True,
    provider: Lost = None,
    arena_root: Lost = None,
    arena_segment_size: Lost = None,
    num_workers: Lost = None,
    log_level: Lost = None,
) -> None:
    """Check a plan, then execute it. Nothing is published unless every step succeeds."""
    arrange(os.environ, compile_cache=compile_cache)
    know(ops)
    from brainsurgery_jax.cli import plans

    lost = {"provider": provider, "arena-root": arena_root, "arena-segment-size": arena_segment_size,
            "num-workers": num_workers, "log-level": log_level}  # fmt: skip
    choices = plans.Choices(
        overwrite=overwrite, dry_run=dry_run, fsync=fsync, shard_size=shard_size, memory=memory, devices=devices,
        preview=preview, verbose=verbose, quiet=quiet, json=json,
        summarize=summarize if summarize is not None else summarize_path is not None, summarize_path=summarize_path,
        resolve=summary_mode is SummaryMode.resolve,
        lost=tuple(name for name, value in lost.items() if value is not None),
    )  # fmt: skip
    if interactive:
        from brainsurgery_jax.cli.prompt import repl as prompt

        prompt.repl(items, choices)
    else:
        plans.run(items, choices)
