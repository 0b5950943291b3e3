"""A session at work: texts come in, steps and commands are done, and what came of them is told. No terminal in it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, Literal

from brainsurgery_jax import plugins
from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.progress import watching
from brainsurgery_jax.completion.candidates import Command
from brainsurgery_jax.completion.partial import is_open
from brainsurgery_jax.completion.slots import is_required
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, Span, StoreError, did_you_mean
from brainsurgery_jax.op import OPS
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.source import dump_yaml
from brainsurgery_jax.session import PROMPT, Outcome, Session, nodes

Next = Literal["go", "end"]

COMMANDS: Mapping[str, Command] = {
    "undo": Command("go back to before the last step; files that were saved stay"),
    "redo": Command("go forward again"),
    "show": Command("print the session so far, as the plan that `save-plan` writes"),
    "save-plan": Command("write a plan that does what this session did", "file"),
    "help": Command("this list, or all about one op: `help copy`", "op"),
    "exit": Command("write the plan's output, if it has one, and leave (also Ctrl-D)"),
    "abort": Command("leave without writing the output"),
}

_OTHER_WORDS = {
    "quit": "exit", "q": "exit", ":q": "exit", "bye": "exit", "history": "show", "print": "show", "list": "show",
    "plan": "show", "write": "save-plan", "back": "undo",
}  # fmt: skip
"""What other prompts call our commands."""

MOST_NAMES = 4


class Desk:
    """Holds the session as it stands now. `ask` decides whether a step that the flag `preview` stopped goes on;
    `talks`: whether every step is answered, as at a prompt."""

    def __init__(self, session: Session, *, quiet: bool, talks: bool, ask: Callable[[str], bool] | None = None):
        self.session, self.quiet, self.talks, self.ask = session, quiet, talks, ask
        self.kept = session  # what a plan file or an output holds of it
        self.warned = False
        self.plan_files: set[Path] = set()  # written by this session, so that it may write them again

    def take(self, text: str, first_line: int = 1, file: str = PROMPT) -> Next:
        """Do a command, or steps one after another. Raises PlanError or StoreError at the first that fails: those
        before it stand."""
        name, _, rest = text.strip().partition(" ")
        if "\n" not in text.strip() and (name in COMMANDS and not rest.startswith(":")):
            return self.command(name, rest.strip(), Span(file, first_line, len(text) - len(text.lstrip()) + 1))
        if not rest and "\n" not in text.strip() and (hint := _command_hint(name)):
            place = Span(file, first_line, len(text) - len(text.lstrip()) + 1)
            raise _mistake("op-unknown", f"'{name}' is neither an op nor a command.{hint}", place, "`help` lists them.")
        warned, self.warned = self.warned, False
        for node in nodes("\n" * (first_line - 1) + text, file):
            before = self.session
            self.carry_out(before.step(before.understand(node)))
            if self.session.state.stopped:
                after, self.session, self.warned = self.session, before, warned
                if self._stays():  # until it is said once more nothing has ended
                    return "go"
                self.session = after
                return self.leave()
        return "go"

    def carry_out(self, outcome: Outcome) -> None:
        """Do a step that is understood, unless the user is asked first and says no."""
        flags = self.session.state.flags
        writes = [f"writes {p.path}" for p in outcome.program.publications]
        if flags.preview and (told := "; ".join(filter(None, [impact(outcome.effects), *writes]))):
            show.remark(f"preview: {told}")
            if self.ask is not None and not self.ask("go?"):
                show.remark("left out")
                return
        before = self.session
        show.diagnostics(outcome.program.diagnostics)
        silent = self.quiet or not (outcome.program.checks or outcome.program.publications)
        with watching(quiet=silent, verbose=False) as listen:  # no bar flashes up where there is nothing to wait for
            self.session = outcome.run(listen)
        if self.talks and not outcome.session.state.stopped:
            self.answer(outcome, before)

    def answer(self, outcome: Outcome, before: Session) -> None:
        """Say in a line what a step did."""
        made = tuple(p for p in outcome.session.plan.inputs if p not in before.plan.inputs)
        moves = impact(outcome.effects, self.session.state.default_alias)
        if made:
            show.remark(f"opened {made[0].path}: {counts(self.session)}", "green")
        elif moves:
            show.remark(moves + " (dry run)" * self.session.state.flags.dry_run, "green")
        elif not outcome.program.checks and not outcome.program.publications:
            show.remark("ok", "green")

    # --- commands

    def command(self, name: str, rest: str, span: Span) -> Next:
        """Do one of COMMANDS, which stands at a place."""
        if rest and not COMMANDS[name].takes:
            raise _mistake("command-form", f"{name} takes nothing, got '{rest}'", span, f"Write `{name}`.")
        match name:
            case "undo":
                self.undo()
            case "redo":
                self.redo()
            case "show":
                show.result(f"# {counts(self.session)}\n{dump_yaml(self.session.to_plan()).rstrip()}")
            case "save-plan":
                self.save_plan(rest, span)
            case "help":
                show.result("\n".join(_help(rest, span)))
            case "exit":
                return self.leave()
            case _:
                return "end"
        return "go"

    def undo(self) -> None:
        old, new = self.session, self.session.undo()
        if new is old:
            show.remark("there is nothing to undo: no step is left", "yellow")
            return
        self.session = new
        show.remark(f"undone: {_last_step(old)}; {show.counted(len(new.steps), 'step')} left", "green")
        for p in old.state.publications[len(new.state.publications) :]:
            show.remark(f"{p.path} was written, and stays", "yellow")

    def redo(self) -> None:
        old, self.session = self.session, self.session.redo()
        if self.session is old:
            show.remark("there is nothing to redo: no step was undone last", "yellow")
        else:
            show.remark(f"done again: {_last_step(self.session)}", "green")

    def save_plan(self, file: str, span: Span) -> None:
        if not file:
            raise _mistake("command-form", "save-plan needs the name of a file", span, "Write `save-plan plan.yaml`.")
        path = Path(file).expanduser()
        if path.exists() and path.resolve() not in self.plan_files and not self.session.world.overwrite:
            remedy = "Name another file; `repl --overwrite` lets files be replaced."
            raise StoreError(path, "exists already, and no plan is written over it", remedy=remedy)
        plan = self.session.to_plan()
        try:
            path.write_text(dump_yaml(plan), encoding="utf-8")
        except OSError as error:
            raise StoreError(path, f"the plan cannot be written: {error.strerror}") from error
        told = f" ({show.counted(out, 'step')} that only printed left out)" if (out := self._told()) else ""
        show.remark(f"wrote {file}: {show.counted(len(plan['transforms']), 'step')}{told}", "green")
        self.plan_files.add(path.resolve())
        self.kept = self.session

    def _told(self) -> int:
        return len(self.session.only_told)

    # --- the end

    def leave(self) -> Next:
        """Write the outputs and end; where there is no output and steps would be lost, say so once, and stay."""
        if self._stays():
            return "go"
        outcome = self.session.finish()
        show.diagnostics(outcome.program.diagnostics)
        with watching(quiet=self.quiet, verbose=False) as listen:
            outcome.run(listen)
        if self.session.state.flags.dry_run and not self.quiet:
            show.remark("dry run: nothing was written", "green")
        return "end"

    def _stays(self) -> bool:
        """Whether leaving would lose steps, and the user is told of it for the first time."""
        if self.ask is None or self.warned or self.session.plan.outputs or not (lost := self._lost()):
            return False
        self.warned = True
        told = f"{show.counted(lost, 'step')} would be lost: there is no output. Once more to leave."
        show.remark(told, "yellow")
        show.remark("`save: out.safetensors` writes the tensors, `save-plan plan.yaml` the steps.", "yellow")
        return True

    def _lost(self) -> int:
        """Steps since the last plan or checkpoint was written."""
        now, kept = self.session, self.kept
        if len(now.state.publications) > len(kept.state.publications):
            return 0
        known = set(map(id, kept.steps))
        return sum(id(step) not in known and at not in now.only_told for at, step in enumerate(now.steps))


def unfinished(text: str) -> bool:
    """Whether more lines belong to a text before it is a step: an empty line ends every text."""
    first, *others = text.split("\n")
    if not text.strip() or (others and not others[-1].strip()):
        return False
    if is_open(first) and not first.startswith("- "):
        return is_open(text)  # brackets over several lines end with the last of them
    if others and all(line[:1].isalpha() and not unfinished(line) for line in (first, *others)):
        return False  # a step on each line, as it was pasted
    return bool(others) or is_open(text) or first.startswith("- ") or _opens_block(first)


def _opens_block(line: str) -> bool:
    """Whether a line is the name of an op whose keys must follow below."""
    name = line.strip().removesuffix(":").rstrip()
    op = OPS.get(name) if line.rstrip().endswith(":") else None
    return line.strip() == "transforms:" or (op is not None and any(map(is_required, op.fields())))


def tell(error: PlanError | StoreError, text: str = "", indent: int = 0) -> int:
    """Print what went wrong, places in the typed text as carets under it; yields the exit code."""
    if isinstance(error, StoreError):
        show.store_error(error)
        return 3
    for found in show.in_order(error.diagnostics):
        if found.span is not None and found.span.file == PROMPT and found.span.line:
            for line in caret(text, found, indent):
                show.remark(line)
            found = replace(found, span=None)
        show.diagnostics([_folded(found)])
    return show.exit_code(error.diagnostics)


def _folded(found: Diagnostic) -> Diagnostic:
    """A diagnostic whose lines break between words, if they go to a terminal."""
    if not sys.stderr.isatty():
        return found
    width = max(get_terminal_size().columns, 60) - 1
    message = "\n".join(_wrapped(f"{found.message} [{found.code}]", width))
    hint = "\n".join(_wrapped(found.hint, width - 4))
    return replace(found, message=message.removesuffix(f"[{found.code}]").removesuffix(" "), hint=hint)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def caret(text: str, found: Diagnostic, indent: int, width: int = 0) -> list[str]:
    """Lines that point at a diagnostic's place: a caret alone where the text is one line that stands right above, after
    `indent` characters; else the line, and the caret below it."""
    assert found.span is not None
    lines = text.rstrip().split("\n")
    at = min(found.span.line, len(lines)) - 1
    line, column = lines[at], min(found.span.col, len(lines[at]) + 1) - 1
    if len(lines) == 1 and indent and (not width or indent + len(line) < width):
        return [" " * (indent + column) + "^"]
    return [f"    {line}", " " * (4 + column) + "^"]


def _mistake(code: str, message: str, span: Span, hint: str) -> PlanError:
    return PlanError([Diagnostic(code, message, span, hint)])


def impact(effects: Sequence[Any], default: str | None = None) -> str:
    """What steps do to the names, those of the default alias without it."""
    head = f"{default}::" if default else ""
    parts = []
    every = [effect for outer in effects for _, effect in outer.walk()]
    for word in ("created", "changed", "deleted", "configured"):
        if names := list(dict.fromkeys(name for effect in every for name in getattr(effect, word))):
            shown = show.few([n.removeprefix(head) for n in names], MOST_NAMES)
            parts.append(f"{word} {len(names):,}: {shown}")
    return "; ".join(parts)


def counts(session: Session) -> str:
    """The aliases, and how many tensors each holds."""
    spaces = session.state.spaces
    return ", ".join(f"{a}:: {show.counted(len(s.names), 'tensor')}" for a, s in spaces.items()) or "no checkpoint yet"


def _command_hint(word: str) -> str:
    """`" Did you mean 'exit'?"` for a word that is no op, and like a command; or nothing."""
    if plugins.find(OPS, word) is not None:
        return ""
    meant = _OTHER_WORDS.get(word)
    return f" Did you mean '{meant}'?" if meant else did_you_mean(word, COMMANDS)


def _last_step(session: Session) -> str:
    """The name of the op that made this session of the one before."""
    before = session.before
    if before is not None and len(session.steps) == len(before.steps):
        return f"opening {session.plan.inputs[-1].path}"
    op = session.steps[-1].op
    return op.name if op is not None else ""


def _help(name: str, span: Span) -> list[str]:
    if name:
        try:
            return pages.page(pages.find(name), show.hanging)
        except Refusal as bad:
            raise _mistake(bad.code, bad.message, span, "`help` alone lists them all.") from bad
    width = max(map(len, COMMANDS))
    return [
        *pages.overview(show.hanging)[:-1],
        "A step is a line, `copy: from: wte.weight, to: tok.weight`, or a YAML block that an empty line ends.",
        "",
        "commands of the prompt",
        *(line for n, c in COMMANDS.items() for line in show.hanging(f"  {n.ljust(width)}  ", c.does)),
        "",
        "Ctrl-C stops a step that runs, and leaves all as it was before it.",
    ]


def is_talking() -> bool:
    """Whether somebody sits at both ends of the conversation."""
    return sys.stdin.isatty() and sys.stdout.isatty()
