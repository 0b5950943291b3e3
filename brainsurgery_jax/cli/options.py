"""The options that several commands take, and what completes arguments in a shell. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

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


LOCK_AT = "--lock-at"
"""How the path of `--lock` is passed on: the parser knows no option with a value or without."""

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


Lock = Annotated[
    bool | None,
    typer.Option(
        "--lock/--no-lock",
        help="Write a lock beside each output, or at the PATH.json that follows: what it was made of, digests.",
        show_default="in folders, without digests",
    ),
]
LockAt = Annotated[str | None, typer.Option(LOCK_AT, metavar="PATH", hidden=True)]


def split_lock(words: Sequence[str]) -> list[str]:
    """The words of a command, with the path that follows `--lock` as an option of its own: `--lock=PATH`, or a next
    word that ends like the name of a lock. No plan and no checkpoint does."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, mark, path = word.partition("=")
        if word == "--":
            return [*found, word, *rest]
        if name == "--lock" and (mark or (rest and _is_lock_name(rest[0]))):
            found.append(f"{LOCK_AT}={path if mark else rest.pop(0)}")
        else:
            found.append(word)
    return found


def _is_lock_name(word: str) -> bool:
    return word.endswith(".json") and not word.startswith("-") and not word.endswith(".index.json")


# --- Options that belong together -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Destination:
    """How a run writes its outputs."""

    overwrite: Overwrite = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and compute, but write nothing.")] = False
    fsync: Fsync = True
    shard_size: Shard = "5GB"


@dataclass(frozen=True)
class Resources:
    """What a run may use."""

    memory: Memory = None
    devices: Devices = "all"


@dataclass(frozen=True)
class Printing:
    """What a run prints, and how."""

    preview: Annotated[
        bool, typer.Option("--preview", help="Before each step, show what it will change; the prompt asks whether to.")
    ] = False
    verbose: Verbose = False
    quiet: Quiet = False
    json: Json = False


@dataclass(frozen=True)
class More:
    """What `explain` prints besides the steps, and of which machine."""

    work: Annotated[bool, typer.Option("--work", help="List the work item by item: task, site, bytes, memory.")] = False
    hosts: Annotated[
        int | None, typer.Option("--hosts", metavar="N", min=1, help="Model the run on N hosts: time, bytes, memory.")
    ] = None
    cluster: Annotated[
        str, typer.Option("--cluster", metavar="KEY=VALUE,...", help="What the hosts are: reads=2GB,writes=1GB,...")
    ] = ""
    memory: Memory = None
    everything: Annotated[bool, typer.Option("--all", help="List all names instead of the first few.")] = False


DESTINATION, RESOURCES, PRINTING, NO_MORE = Destination(), Resources(), Printing(), More()
"""As they are without options."""


def spread_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command line's form of a command some of whose parameters are groups of options, dataclasses: each field of
    a group is an option of its own, with the default of the field."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    shown: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if (group := groups.get(parameter.name)) is None:
            shown.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        types = get_type_hints(group, include_extras=True)
        shown += [
            Parameter(field.name, parameter.kind, default=field.default, annotation=types[field.name])
            for field in fields(group)
        ]
    spread = Signature(shown)

    @wraps(command)
    def run(*words: Any, **options: Any) -> None:
        bound = spread.bind(*words, **options)
        bound.apply_defaults()
        given = dict(bound.arguments)
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__dict__["__signature__"] = spread
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run
