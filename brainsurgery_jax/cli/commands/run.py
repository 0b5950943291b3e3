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


Summarize = Annotated[
    bool | None,
    typer.Option(
        "--summarize/--no-summarize",
        "-s",
        help="After the run, print the executed steps as YAML.",
        show_default="no",
    ),
]
SummarizePath = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write the summary to this file instead of stdout.")
]
Mode = Annotated[SummaryMode, typer.Option(help="raw: steps only; resolve: inputs and output too.")]
Interactive = Annotated[
    bool, typer.Option("--interactive", "-i", help="After the plan, open the prompt; write the output on leaving.")
]
Lock = Annotated[
    bool, typer.Option("--lock", help="Write a lock beside each output: what it was made of, digests of all tensors.")
]
HardLinks = Annotated[
    bool,
    typer.Option(
        "--hard-links", help="Link to files of inputs that do not change; writing to one in place changes both."
    ),
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Run on several processes, each started with this plan.")
]
Coordinator = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where process 0 listens (default: as SLURM and others say).")
]
ProcessId = Annotated[int | None, typer.Option(metavar="N", min=0, help="The number of this process, from 0.")]
ProcessCount = Annotated[int | None, typer.Option(metavar="N", min=1, help="The number of processes.")]
LostAfter = Annotated[
    float, typer.Option(metavar="SECONDS", min=2.0, help="Take a process for lost after this long without a sign.")
]
CompileCache = Annotated[
    bool, typer.Option("--compile-cache/--no-compile-cache", help="Cache compiled kernels in your cache folder.")
]


def run(
    items: Items,
    ops: Ops = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Evaluate asserts and dumps, but write nothing.")] = False,
    fsync: Fsync = True,
    shard_size: Shard = "5GB",
    memory: Memory = None,
    devices: Devices = "all",
    summarize: Summarize = None,
    summarize_path: SummarizePath = None,
    summary_mode: Mode = SummaryMode.raw,
    lock: Lock = False,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="With --lock: also the SHA-256 of files of weights.")
    ] = False,
    locked: Annotated[
        list[str] | None,
        typer.Option("--locked", metavar="LOCK", help="Publish only what agrees with this lock; one for each output."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run was interrupted; if this one is, keep what it wrote.")
    ] = False,
    hard_links: HardLinks = False,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    process_id: ProcessId = None,
    process_count: ProcessCount = None,
    lost_after: LostAfter = 30.0,
    interactive: Interactive = False,
    preview: Annotated[bool, typer.Option("--preview", help="Before each step, show what it will change.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    json: Json = False,
    compile_cache: CompileCache = True,
    provider: Lost = None,
    arena_root: Lost = None,
    arena_segment_size: Lost = None,
    num_workers: Lost = None,
    log_level: Lost = None,
) -> None:
    """Check a plan, then execute it. Nothing is published unless every step succeeds."""
    _refuse_parts(distributed, interactive, coordinator, process_id, process_count)
    arrange(os.environ, compile_cache=compile_cache)
    know(ops)
    from brainsurgery_jax.cli import plans

    choices = plans.Choices(
        overwrite=overwrite, dry_run=dry_run, fsync=fsync, shard_size=shard_size, memory=memory, devices=devices,
        preview=preview, verbose=verbose, quiet=quiet, json=json, resolve=summary_mode is SummaryMode.resolve,
        summarize=summarize if summarize is not None else summarize_path is not None, summarize_path=summarize_path,
        lock=lock, sha256=sha256, locked=tuple(locked or ()), resume=resume,
        hard_links=hard_links,
        process=(coordinator, process_id, process_count, lost_after) if distributed else None,
        lost=_options(provider=provider, arena_root=arena_root, arena_segment_size=arena_segment_size,
                      num_workers=num_workers, log_level=log_level),
    )  # fmt: skip
    if not interactive:
        return plans.run(items, choices)
    from brainsurgery_jax.cli.prompt import repl as prompt

    return prompt.repl(items, choices)


def _refuse_parts(distributed: bool, interactive: bool, *parts: object) -> None:
    """Raise BadParameter for options of a run over several processes without it, or with the prompt."""
    if not distributed and any(part is not None for part in parts):
        raise typer.BadParameter("needs --distributed", param_hint="--coordinator, --process-id, --process-count")
    if distributed and interactive:
        raise typer.BadParameter("a prompt has one process; leave out --interactive", param_hint="--distributed")


def _options(**given: str | None) -> tuple[str, ...]:
    """The options that were given, as they are written."""
    return tuple(name.replace("_", "-") for name, value in given.items() if value is not None)
