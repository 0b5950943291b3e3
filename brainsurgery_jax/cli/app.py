"""The command `brainsurgery-jax`: its options, and how its errors become exit codes (`exit_codes.py`). Heavy modules
are imported when they are needed.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
from copy import copy
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from brainsurgery_jax.cli import log
from brainsurgery_jax.cli.commands.audit import audit
from brainsurgery_jax.cli.commands.check import check
from brainsurgery_jax.cli.commands.compare_logits import compare_logits
from brainsurgery_jax.cli.commands.convert import convert, layouts
from brainsurgery_jax.cli.commands.demo import demo
from brainsurgery_jax.cli.commands.diff import diff
from brainsurgery_jax.cli.commands.explain import explain
from brainsurgery_jax.cli.commands.import_mergekit import import_mergekit
from brainsurgery_jax.cli.commands.inspect import inspect
from brainsurgery_jax.cli.commands.ops import ops_, schema
from brainsurgery_jax.cli.commands.recipes import recipes
from brainsurgery_jax.cli.commands.repl import repl
from brainsurgery_jax.cli.commands.report import report
from brainsurgery_jax.cli.commands.run import run
from brainsurgery_jax.cli.commands.spectrum import spectrum
from brainsurgery_jax.cli.commands.verify import replay, verify
from brainsurgery_jax.cli.commands.web import web
from brainsurgery_jax.cli.descriptors import raise_descriptor_limit
from brainsurgery_jax.cli.exit_codes import ExitCode
from brainsurgery_jax.cli.options import completing, split_lock
from brainsurgery_jax.cli.stopping import Terminated, stopping
from brainsurgery_jax.cli.streams import guard_streams
from brainsurgery_jax.version import __version__

_COMPLETES = "_BRAINSURGERY_JAX_COMPLETE"
_ANYWHERE = ("--log-format", "--traceback")
"""Options of every command, which may stand anywhere."""

_OWN_OPTIONS = ("-h", "--help", "--version", "--install-completion", "--show-completion", *_ANYWHERE)


USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
"""The `UsageError` of the click that this typer uses: another package, or its own copy."""

_JSON = "brainsurgery_jax.json"
"""Where the context of a command keeps whether its output is JSON."""


class _Word(NamedTuple):
    """What the formatters of completions ask for."""

    value: str
    help: str
    type: str = "plain"


class Commands(TyperGroup):
    """The commands. Any other word is a plan to run. Errors that a user can fix become exit codes here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        of_all, args = _split_options(split_lock(args))
        if {"json", "--log-format=json"} & set(of_all):  # known before anything else is found wrong
            log.choose(log.LogFormat.json, tracebacks="--traceback" in of_all)
        try:
            return self._parse_words(ctx, of_all, args)
        except USAGE_ERROR as error:
            raise _refuse_usage(error, json="--json" in args) from error

    def _parse_words(self, ctx: Any, of_all: list[str], args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in _OWN_OPTIONS:
            if not _may_be_of_a_plan(args[0]) and not ctx.resilient_parsing:
                ctx.fail(_unknown(args[0], list(self.commands)))
            args = ["run", *args]
        if args[:1] == ["run"] and not ctx.resilient_parsing:
            _refuse_lock_name(ctx, args)
        if not ctx.resilient_parsing:
            _refuse_dashes(ctx, args)
        ctx.meta[_JSON] = "--json" in args
        return super().parse_args(ctx, [*of_all, *args])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        plans = completing("first word")(ctx, incomplete)
        return [*super().shell_complete(ctx, incomplete), *(_Word(word, note) for word, note in plans)]

    def invoke(self, ctx: Any) -> Any:
        from brainsurgery_jax.cli import show
        from brainsurgery_jax.errors import PlanError, Stopped, StoreError, speaking

        json = ctx.meta.get(_JSON, False)
        try:
            with speaking("shell"):
                answer = super().invoke(ctx)
            show.flush()
            return answer
        except (PlanError, StoreError, Stopped, KeyboardInterrupt) as error:
            raise typer.Exit(_print_failure(error, json=json)) from error
        except OSError as error:  # a look at a file that nobody expected to fail
            raise typer.Exit(_print_failure(_of_the_system(error), json=json)) from error
        except USAGE_ERROR as error:
            raise _refuse_usage(error, json=json) from error
        except Terminated as stop:
            show.print_stop(stop.word, stop)
            raise


def _refuse_usage(error: Any, *, json: bool) -> Exception:
    """What wrong usage is raised as: printed as JSON already, or as it is, to be printed with the usage."""
    from brainsurgery_jax.cli import show
    from brainsurgery_jax.rendering.data import command_error_data

    found = command_error_data("usage", error.format_message())
    if json:
        show.failure([found], error.exit_code)
    elif log.is_json():
        log.write_event("diagnostic", **found)
    else:
        return error
    return typer.Exit(error.exit_code)


def _of_the_system(error: OSError) -> Exception:
    """The error of a checkpoint that a system error is, wherever it came up."""
    from brainsurgery_jax.errors import StoreError
    from brainsurgery_jax.store.failures import remedy_for

    return StoreError(error.filename or "the system", error.strerror or str(error), remedy=remedy_for(error))


def _print_failure(error: Any, *, json: bool) -> int:
    """Print why a command failed; returns its exit code."""
    from brainsurgery_jax.cli import show
    from brainsurgery_jax.cli.failures import failure_of
    from brainsurgery_jax.errors import PlanError, StoreError

    code, found = failure_of(error)
    log.print_traceback(error)
    if json:
        show.failure(found, code)
    elif isinstance(error, PlanError):
        show.diagnostics(error.diagnostics)
    elif isinstance(error, StoreError):
        show.store_error(error)
    else:
        show.print_stop("interrupted", error)
    return code


def _split_options(args: list[str]) -> tuple[list[str], list[str]]:
    """The options that every command has, wherever they stand before `--`, and all other words."""
    own, rest = [], list(args)
    end = rest.index("--") if "--" in rest else len(rest)
    for at in reversed(range(end)):
        name, mark, _ = rest[at].partition("=")
        if name in _ANYWHERE:
            last = at + (2 if name == "--log-format" and not mark else 1)
            own[:0] = rest[at:last]
            del rest[at:last]
    return own, rest


def _refuse_lock_name(ctx: Any, args: list[str]) -> None:
    """Refuse a path after the `--lock` of `run` that no lock has, and that is no plan either."""
    for word, path in pairwise(args):
        if word == "--lock" and not _may_be_of_a_plan(path):
            ctx.fail(f"--lock: expected a path that ends in .json, got '{path}'. Write --lock=PATH.json")


_OVERRIDE = re.compile(r"--((?:seed|vars|inputs|transforms|outputs?)\b[^=]*)(=.*)?")


def _refuse_dashes(ctx: Any, args: list[str]) -> None:
    """Refuse an override that is written as an option."""
    for found in filter(None, map(_OVERRIDE.fullmatch, args)):
        ctx.fail(f"No such option: --{found[1]}. Write overrides without dashes: {found[1]}{found[2] or '=...'}")


def _may_be_of_a_plan(word: str) -> bool:
    return word.startswith(("-", "recipe:")) or "=" in word or word.lower().endswith((".yaml", ".yml"))


def _unknown(word: str, commands: list[str]) -> str:
    from brainsurgery_jax.errors import did_you_mean

    if os.path.exists(os.path.expanduser(word)):
        return f"'{word}' is neither a command nor a plan (.yaml or .yml). To list its tensors: inspect {word}"
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
    log_format: Annotated[
        log.LogFormat, typer.Option(help="Write the log on stderr as text, or as JSON lines.")
    ] = log.LogFormat.text,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show tracebacks of errors, for developers.")] = False,
) -> None:
    """Edit neural-network checkpoints by a plan, checked from headers and then streamed.

    Without a command, it runs the plan: `brainsurgery-jax PLAN.yaml seed=1` is `brainsurgery-jax run PLAN.yaml seed=1`.
    Start with `brainsurgery-jax demo`.
    """
    log.choose(log_format, tracebacks=traceback)


# In the order of `--help`.
for _name, _command in {
    "run": run, "repl": repl, "check": check, "explain": explain, "audit": audit, "inspect": inspect, "diff": diff,
    "compare-logits": compare_logits, "spectrum": spectrum, "report": report,
    "verify": verify, "replay": replay, "convert": convert, "layouts": layouts,
    "ops": ops_, "recipes": recipes, "schema": schema, "import-mergekit": import_mergekit, "web": web, "demo": demo,
}.items():  # fmt: skip
    app.command(_name)(_command)


def _in_ops_of_the_user(defect: Exception) -> object:
    """The message for an exception that a user-defined op raised; None for any other exception."""
    plugins = sys.modules.get("brainsurgery_jax.plugins")
    return None if plugins is None else plugins.blamed(defect)


def _exit_code_of_stop(defect: Exception) -> int | None:
    """The exit code of a command that was stopped in the middle of something that made an error of it, such as the
    import of a library; None if it was not."""
    from brainsurgery_jax.errors import cause_of

    stop = cause_of(defect)
    if not isinstance(stop, KeyboardInterrupt | Terminated):
        return None
    from brainsurgery_jax.cli import show

    show.print_stop("interrupted", stop)
    return stop.exit_code if isinstance(stop, Terminated) else int(ExitCode.INTERRUPTED)


def _app_for(first: str) -> typer.Typer:
    """The app. Where the first word is a command or a plan, it has that command only: to make the options of all takes
    as long as to read a plan."""
    name = "run" if not first.startswith("-") and _may_be_of_a_plan(first) else first
    alone = copy(app)
    alone.registered_commands = [command for command in app.registered_commands if command.name == name]
    return alone if alone.registered_commands and _COMPLETES not in os.environ else app


def main() -> None:
    """Run the command line of this process."""
    with log.log_scope(), guard_streams():
        try:
            _run_command()
        except SystemExit as end:
            watching = sys.modules.get("brainsurgery_jax.engine.run.watching")
            if watching is not None and watching.is_left_computing():
                _end_at_once(end.code if isinstance(end.code, int) else int(end.code is not None))
            raise


def _end_at_once(code: int) -> NoReturn:
    """End the process as it is: its interpreter would be aborted by a thread that waits for a lost process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run_command() -> None:
    raise_descriptor_limit()
    # What we make has no cycles and lives to the end; to look for them took a tenth of the time.
    gc.set_threshold(1_000_000)
    # At exit Python looks for cycles among all objects, several times: a fifth of the time of `check`. Nothing waits
    # for what it would find.
    atexit.register(gc.freeze)
    if _COMPLETES in os.environ:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        with stopping():
            _app_for(sys.argv[1] if len(sys.argv) > 1 else "")(prog_name="brainsurgery-jax")
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.INTERRUPTED))
    except Exception as defect:
        if _COMPLETES in os.environ:  # a shell would show the error in the line that is typed
            sys.exit(1)
        if (code := _exit_code_of_stop(defect)) is not None:
            sys.exit(code)
        # The one place that catches everything: a user gets a sentence, and a traceback for the asking.
        sys.exit(_print_defect(defect))


def _print_defect(defect: Exception) -> int:
    """Print an exception that nobody expected; returns the exit code."""
    from brainsurgery_jax.cli import show

    if "--verbose" in sys.argv or "-v" in sys.argv:
        log.choose(log.LogFormat.json if log.is_json() else log.LogFormat.text, tracebacks=True)
    log.print_traceback(defect)
    if (own := _in_ops_of_the_user(defect)) is not None:
        show.remark(str(own))
        return int(ExitCode.WRONG)
    show.remark(f"Sorry, this is a defect of brainsurgery-jax {__version__}: {type(defect).__name__}: {defect}")
    if not log.shows_tracebacks():
        show.remark("Please report it with the plan, this line, and the traceback that --traceback adds.")
    return int(ExitCode.DEFECT)
