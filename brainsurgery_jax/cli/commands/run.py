"""`run`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.cli.options import (
    DESTINATION,
    PRINTING,
    RESOURCES,
    Destination,
    Items,
    Lock,
    LockAt,
    Ops,
    Printing,
    Resources,
    know,
    spread_groups,
)


class SummaryMode(StrEnum):
    """What a summary holds: the steps as run, or a whole plan that can be run again."""

    raw = "raw"
    resolve = "resolve"


@dataclass(frozen=True)
class Summary:
    """Whether the steps are printed after the run, and how."""

    summarize: Annotated[
        bool | None,
        typer.Option(
            "--summarize/--no-summarize",
            "-s",
            help="After the run, print the executed steps as YAML.",
            show_default="no",
        ),
    ] = None
    summarize_path: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the summary to this file instead of stdout.")
    ] = None
    summary_mode: Annotated[SummaryMode, typer.Option(help="raw: steps only; resolve: inputs and output too.")] = (
        SummaryMode.raw
    )


@dataclass(frozen=True)
class Locking:
    """The locks that a run writes and agrees with, and whether it can be resumed."""

    lock: Lock = None
    lock_at: LockAt = None
    sha256: Annotated[bool, typer.Option("--sha256", help="With --lock: also the SHA-256 of files of weights.")] = False
    locked: Annotated[
        list[str] | None,
        typer.Option("--locked", metavar="LOCK", help="Publish only what agrees with this lock; one for each output."),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run was interrupted; if this one is, keep what it wrote.")
    ] = False

    def refuse_at_prompt(self) -> None:
        """Raise BadParameter for options that the prompt, whose steps are written one by one, cannot keep."""
        options = {
            "--lock": self.lock or self.lock_at,
            "--sha256": self.sha256,
            "--locked": self.locked,
            "--resume": self.resume,
        }
        if given := [name for name, value in options.items() if value]:
            raise typer.BadParameter("the prompt keeps no record; leave out --interactive", param_hint=", ".join(given))


@dataclass(frozen=True)
class Processes:
    """Which process of a run over several this is."""

    distributed: Annotated[
        bool, typer.Option("--distributed", help="Run on several processes, each started with this plan.")
    ] = False
    coordinator: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where process 0 listens (default: as SLURM and others say)."),
    ] = None
    process_id: Annotated[int | None, typer.Option(metavar="N", min=0, help="The number of this process, from 0.")] = (
        None
    )
    process_count: Annotated[int | None, typer.Option(metavar="N", min=1, help="The number of processes.")] = None
    lost_after: Annotated[
        float, typer.Option(metavar="SECONDS", min=2.0, help="Take a process for lost after this long without a sign.")
    ] = 30.0

    def refuse_parts(self, *, interactive: bool) -> None:
        """Raise BadParameter for options of a run over several processes without it, or with the prompt, and for
        values that cannot be."""
        parts = self.coordinator, self.process_id, self.process_count
        if not self.distributed and any(part is not None for part in parts):
            raise typer.BadParameter("needs --distributed", param_hint="--coordinator, --process-id, --process-count")
        if self.distributed and interactive:
            raise typer.BadParameter("a prompt has one process; leave out --interactive", param_hint="--distributed")
        if self.coordinator is not None and re.fullmatch(r".+:\d+", self.coordinator) is None:
            raise typer.BadParameter(f"'{self.coordinator}' is no address: write HOST:PORT", param_hint="--coordinator")
        number, count = self.process_id, self.process_count
        if number is not None and count is not None and number >= count:
            message = f"processes are numbered from 0 to {count - 1}, got {number}"
            raise typer.BadParameter(message, param_hint="--process-id")

    @property
    def own(self) -> tuple[str | None, int | None, int | None, float] | None:
        """The fields of a `ProcessAddress`; None for a run of one process."""
        return (self.coordinator, self.process_id, self.process_count, self.lost_after) if self.distributed else None


Lost = Annotated[str | None, typer.Option(hidden=True)]


@dataclass(frozen=True)
class Ignored:
    """Options of BrainSurgery that have no effect here."""

    provider: Lost = None
    arena_root: Lost = None
    arena_segment_size: Lost = None
    num_workers: Lost = None
    log_level: Lost = None


SUMMARY, LOCKING, PROCESSES, IGNORED = Summary(), Locking(), Processes(), Ignored()
"""As they are without options."""

Interactive = Annotated[
    bool, typer.Option("--interactive", "-i", help="After the plan, open the prompt; write the output on leaving.")
]
HardLinks = Annotated[
    bool,
    typer.Option(
        "--hard-links", help="Link to files of inputs that do not change; writing to one in place changes both."
    ),
]
CompileCache = Annotated[
    bool, typer.Option("--compile-cache/--no-compile-cache", help="Cache compiled kernels in your cache folder.")
]


@spread_groups
def run(
    items: Items,
    ops: Ops = None,
    destination: Destination = DESTINATION,
    resources: Resources = RESOURCES,
    summary: Summary = SUMMARY,
    locking: Locking = LOCKING,
    hard_links: HardLinks = False,
    processes: Processes = PROCESSES,
    interactive: Interactive = False,
    printing: Printing = PRINTING,
    compile_cache: CompileCache = True,
    ignored: Ignored = IGNORED,
) -> None:
    """Check a plan, then execute it. Nothing is published unless every step succeeds."""
    processes.refuse_parts(interactive=interactive)
    if interactive:
        locking.refuse_at_prompt()
    arrange(os.environ, compile_cache=compile_cache)
    know(ops)
    from brainsurgery_jax.cli import plans

    asked, path = summary.summarize, summary.summarize_path
    choices = plans.Choices(
        **vars(destination), **vars(resources), **vars(printing), resolve=summary.summary_mode is SummaryMode.resolve,
        summarize=asked if asked is not None else path is not None, summarize_path=path,
        lock=locking.lock_at or locking.lock, sha256=locking.sha256, locked=tuple(locking.locked or ()),
        resume=locking.resume, hard_links=hard_links,
        process=processes.own, lost=_options(**vars(ignored)),
    )  # fmt: skip
    if not interactive:
        return plans.run(items, choices)
    from brainsurgery_jax.cli.prompt import repl as prompt

    return prompt.repl(items, choices)


def _options(**given: str | None) -> tuple[str, ...]:
    """The options that were given, as they are written."""
    return tuple(name.replace("_", "-") for name, value in given.items() if value is not None)
