"""The command `brainsurgery-jax`: what it takes, which exit code comes of what. Loads nothing heavy before it must.

Exit codes: 0 done; 1 the plan is wrong or a check failed; 2 wrong usage; 3 input or output could not be read or
written; 70 a defect of this tool; 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from enum import StrEnum
from io import TextIOWrapper
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from brainsurgery_jax.cli.environment import arrange
from brainsurgery_jax.version import __version__

# The commands import what they need when they are called: `--help` and `inspect` must not wait for the ops.

_COMPLETES = "_BRAINSURGERY_JAX_COMPLETE"
_OWN_OPTIONS = ("-h", "--help", "--version", "--install-completion", "--show-completion")


class _Word(NamedTuple):
    """What the formatters of completions ask for."""

    value: str
    help: str
    type: str = "plain"


class Commands(TyperGroup):
    """The commands; what names none of them is a plan to run. Failures that a user can mend become exit codes here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in _OWN_OPTIONS:
            if not _may_be_of_a_plan(args[0]) and not ctx.resilient_parsing:
                ctx.fail(_unknown(args[0], list(self.commands)))
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        plans = _completing("first word")(ctx, incomplete)
        return [*super().shell_complete(ctx, incomplete), *(_Word(word, note) for word, note in plans)]

    def invoke(self, ctx: Any) -> Any:
        from brainsurgery_jax.cli import show
        from brainsurgery_jax.errors import PlanError, StoreError

        try:
            answer = super().invoke(ctx)
            show.flush()
            return answer
        except PlanError as error:
            show.diagnostics(error.diagnostics)
            raise typer.Exit(show.exit_code(error.diagnostics)) from error
        except StoreError as error:
            show.store_error(error)
            raise typer.Exit(3) from error
        except KeyboardInterrupt:
            show.remark("interrupted: nothing was published")
            raise typer.Exit(130) from None


def _may_be_of_a_plan(word: str) -> bool:
    return word.startswith("-") or "=" in word or word.lower().endswith((".yaml", ".yml"))


def _unknown(word: str, commands: list[str]) -> str:
    from brainsurgery_jax.errors import did_you_mean

    if os.path.exists(os.path.expanduser(word)):
        return f"'{word}' is neither a command nor a plan (.yaml or .yml). To look into a checkpoint: inspect {word}"
    plans = [word + suffix for suffix in (".yaml", ".yml") if os.path.isfile(os.path.expanduser(word + suffix))]
    near = f" Did you mean '{plans[0]}'?" if plans else did_you_mean(word, commands)
    return f"'{word}' is neither a command nor a plan (.yaml or .yml).{near}"


_CONTEXT = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="brainsurgery-jax", cls=Commands, no_args_is_help=True, rich_markup_mode=None, context_settings=_CONTEXT,
    pretty_exceptions_enable=False,
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"brainsurgery-jax {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Change neural-network checkpoints by a plan: checked from headers, then streamed.

    Without a command, runs the plan: `brainsurgery-jax PLAN.yaml seed=1` is `brainsurgery-jax run PLAN.yaml seed=1`.
    Start with `brainsurgery-jax demo`.
    """


def _completing(what: str) -> Callable[[Any, str], list[tuple[str, str]]]:
    """What completes an argument in a shell; loads no more than that needs."""

    def complete(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        from brainsurgery_jax.cli import shells

        return shells.complete(what, ctx.params | {shells.REST: ctx.args}, incomplete)

    return complete


Items = Annotated[
    list[str],
    typer.Argument(
        metavar="PLAN.yaml [PATH=VALUE]",
        help="Plan files, merged in order, and overrides.",
        autocompletion=_completing("items"),
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Let outputs replace what is there.")]
Shard = Annotated[
    str, typer.Option("--shard-size", metavar="SIZE", help="Largest file of an output folder, if the plan says none.")
]
Ops = Annotated[
    list[str] | None,
    typer.Option(
        "--ops",
        metavar="FILE.py",
        help="Make the ops of this file known.",
        show_default=False,
        autocompletion=_completing("python"),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Lost = Annotated[str | None, typer.Option(hidden=True)]


class SummaryMode(StrEnum):
    """What a summary holds: the steps as run, or a whole plan that can be run again."""

    raw = "raw"
    resolve = "resolve"


class TreeFormat(StrEnum):
    """How `inspect` draws names."""

    compact = "compact"
    tree = "tree"
    json = "json"


def _know(ops: Sequence[str] | None) -> None:
    """Register the ops of the user's files; not before `arrange`, since they may import JAX."""
    if ops:
        from brainsurgery_jax import plugins

        plugins.register(*ops)


@app.command("run")
def run_(
    items: Items,
    ops: Ops = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compute what asserts and dumps need, and write nothing.")
    ] = False,
    fsync: Annotated[bool, typer.Option("--fsync/--no-fsync", help="Flush files to disk before publishing.")] = True,
    shard_size: Shard = "5GB",
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Hold no more than this (default: a quarter of what is free).")
    ] = None,
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
        str | None, typer.Option(metavar="FILE", help="Write the summary there, not to stdout.")
    ] = None,
    summary_mode: Annotated[
        SummaryMode, typer.Option(help="raw: the steps; resolve: inputs and output too.")
    ] = SummaryMode.raw,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="After the plan, open the prompt; then write the output.")
    ] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Before each step, tell what it will change.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell every tensor that a step makes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
    compile_cache: Annotated[
        bool, typer.Option("--compile-cache/--no-compile-cache", help="Keep compiled kernels in your cache folder.")
    ] = True,
    provider: Lost = None,
    arena_root: Lost = None,
    arena_segment_size: Lost = None,
    num_workers: Lost = None,
    log_level: Lost = None,
) -> None:
    """Check a plan, then execute it. Nothing is published unless all of it succeeds."""
    arrange(os.environ, compile_cache=compile_cache)
    _know(ops)
    from brainsurgery_jax.cli import plans

    lost = {"provider": provider, "arena-root": arena_root, "arena-segment-size": arena_segment_size,
            "num-workers": num_workers, "log-level": log_level}  # fmt: skip
    choices = plans.Choices(
        overwrite=overwrite, dry_run=dry_run, fsync=fsync, shard_size=shard_size, memory=memory, preview=preview,
        verbose=verbose,
        quiet=quiet,        summarize=summarize if summarize is not None else summarize_path is not None,
        summarize_path=summarize_path, resolve=summary_mode is SummaryMode.resolve,
        lost=tuple(name for name, value in lost.items() if value is not None),
    )  # fmt: skip
    if interactive:
        from brainsurgery_jax.cli.prompt import repl as prompt

        prompt.repl(items, choices)
    else:
        plans.run(items, choices)


@app.command()
def repl(
    items: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PLAN.yaml | CKPT] [PATH=VALUE]",
            help="A plan to start from, or checkpoints to open.",
            autocompletion=_completing("items"),
            show_default=False,
        ),
    ] = None,
    ops: Ops = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and compute, and write nothing.")] = False,
    fsync: Annotated[bool, typer.Option("--fsync/--no-fsync", help="Flush files to disk before publishing.")] = True,
    shard_size: Shard = "5GB",
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Hold no more than this (default: a quarter of what is free).")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Before each step, tell what it does, and ask.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell every tensor that a step makes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
) -> None:
    """Open the prompt: type steps, see at once what they do, undo them, keep them as a plan.

    A plan is run first; its output is written when you leave. Without a terminal, steps are read from the pipe.
    """
    arrange(os.environ, compile_cache=True)
    _know(ops)
    from brainsurgery_jax.cli import plans
    from brainsurgery_jax.cli.prompt import repl as prompt

    choices = plans.Choices(
        overwrite=overwrite, dry_run=dry_run, fsync=fsync, shard_size=shard_size, memory=memory, preview=preview,
        verbose=verbose, quiet=quiet,
    )  # fmt: skip
    prompt.repl(items or [], choices)


@app.command()
def check(
    items: Items, ops: Ops = None, overwrite: Overwrite = False, shard_size: Shard = "5GB", json: Json = False
) -> None:
    """Find every mistake, from headers alone.

    The exit code is 1 if there is any, 3 if checkpoints cannot be read or written and that is all.
    """
    from brainsurgery_jax.cli import plans

    raise typer.Exit(plans.check(items, ops or (), overwrite=overwrite, shard_size=shard_size, json=json))


@app.command()
def explain(
    items: Items,
    ops: Ops = None,
    overwrite: Overwrite = False,
    shard_size: Shard = "5GB",
    everything: Annotated[bool, typer.Option("--all", help="Every name, not the first few.")] = False,
    json: Json = False,
) -> None:
    """Tell what a run would do, step by step.

    What each step matches, what is written, how much is computed, how much memory it takes.
    """
    _know(ops)
    from brainsurgery_jax.cli import plans

    plans.explain(items, overwrite=overwrite, shard_size=shard_size, everything=everything, json=json)


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint file or folder.")],
    target: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only names that match in full.", autocompletion=_completing("tensor")),
    ] = None,
    format: Annotated[TreeFormat, typer.Option("--format", help="How to draw the names.")] = TreeFormat.compact,
    stats: Annotated[bool, typer.Option("--stats", help="Read the tensors: least, greatest and mean value.")] = False,
    json: Json = False,
) -> None:
    """List what a checkpoint holds, from its headers."""
    from brainsurgery_jax.cli import inspect_

    raise typer.Exit(inspect_.inspect(checkpoint, target, "json" if json else format.value, stats=stats))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint file or folder.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Where to write: a folder, or a file.")],
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A layout, the library it is for (tunix), or none; else recognised.",
            show_default=False,
            autocompletion=_completing("layout"),
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="safetensors, orbax, torch, npz, ...",
            show_default=False,
            autocompletion=_completing("format"),
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Cast floating tensors to this.",
            show_default=False,
            autocompletion=_completing("dtype"),
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
    fsync: Annotated[bool, typer.Option("--fsync/--no-fsync", help="Flush files to disk before publishing.")] = True,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", metavar="SIZE", help="Largest file of a folder.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Hold no more than this (default: a quarter of what is free).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
) -> None:
    """Convert a checkpoint between formats, and between Hugging Face's names and JAX libraries' trees.

    The model and the direction are recognised from config.json and from the names. `layouts` lists what is known.
    """
    arrange(os.environ, compile_cache=True)
    from brainsurgery_jax.cli import convert as pages

    options = pages.options_of(option or ()) | ({} if scan is None else {"scan": scan})
    wishes = pages.Wishes(layout, to, dtype, options, config, overwrite, verify, with_opt_state, shard_size)
    pages.convert(source, destination, wishes, memory=memory, fsync=fsync, dry_run=dry_run, quiet=quiet)


@app.command()
def layouts(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[check] [NAME]",
            help="One layout; or `check`, to prove one or all.",
            show_default=False,
            autocompletion=_completing("layouts"),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the layouts that `convert` knows, show one, or prove them.

    The proof: names go one to one, shapes close, every op has an inverse; rules that lose bits are named.
    """
    from brainsurgery_jax.cli import convert as pages

    raise typer.Exit(pages.layouts(words or [], json=json))


@app.command("ops")
def ops_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="An op, or an operator of assert (assert.NAME).",
            autocompletion=_completing("op"),
        ),
    ] = None,
    ops: Ops = None,
    json: Json = False,
) -> None:
    """List all ops, or tell all about one."""
    _know(ops)
    from brainsurgery_jax.cli import ops as pages

    pages.ops(name, json=json)


@app.command()
def schema(ops: Ops = None) -> None:
    """Print the JSON Schema of plans, for editors."""
    _know(ops)
    from brainsurgery_jax.cli import ops as pages

    pages.schema()


@app.command("import-mergekit")
def import_mergekit(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG.yml", help="A configuration of mergekit.", autocompletion=_completing("plan")),
    ],
    out: Annotated[
        str | None, typer.Option(metavar="PLAN.yaml", help="Write the plan there, not to stdout.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let the plan replace what is there.")] = False,
) -> None:
    """Print the plan that does what a mergekit configuration says.

    Linear merges, task arithmetic and stacked layers; what a plan cannot say is an error that names it.
    """
    from brainsurgery_jax.cli import importing

    importing.import_mergekit(config, out, overwrite=overwrite)


@app.command()
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


def _in_ops_of_the_user(defect: Exception) -> object:
    """What to say of an exception that a user's own op raised; None of any other."""
    plugins = sys.modules.get("brainsurgery_jax.plugins")
    return None if plugins is None else plugins.blamed(defect)


def main() -> None:
    """Run the command line of this process."""
    # What we make has no cycles and lives to the end; to look for them took a tenth of the time.
    gc.set_threshold(1_000_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no failure
    if _COMPLETES in os.environ:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        app(prog_name="brainsurgery-jax")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as defect:
        if _COMPLETES in os.environ:  # a shell would show the error in the line that is typed
            sys.exit(1)
        # The one place that catches everything: a user gets a sentence, and a traceback for the asking.
        if (own := _in_ops_of_the_user(defect)) is not None:
            print(own, file=sys.stderr)
            if os.environ.get("BRAINSURGERY_TRACEBACK"):
                traceback.print_exception(defect)
            sys.exit(1)
        print(
            f"Sorry, this is a defect of brainsurgery-jax {__version__}: {type(defect).__name__}: {defect}",
            file=sys.stderr,
        )
        if {"--verbose", "-v"} & set(sys.argv) or os.environ.get("BRAINSURGERY_TRACEBACK"):
            traceback.print_exception(defect)
        else:
            print(
                "Please report it with the plan, this line, and the traceback that BRAINSURGERY_TRACEBACK=1 adds.",
                file=sys.stderr,
            )
        sys.exit(70)
