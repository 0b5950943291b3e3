"""A session at work for any front end: texts come in, steps and commands are carried out, replies come back as data.

A terminal, a pipe and a browser differ in how they show messages and how they ask. Nothing here prints or reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from brainsurgery_jax import plugins
from brainsurgery_jax.completion.candidates import Command
from brainsurgery_jax.completion.partial import is_open
from brainsurgery_jax.completion.slots import is_required
from brainsurgery_jax.documents import Text
from brainsurgery_jax.engine.events import Event, Listener, Published, Said, ignore
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, Span, StoreError, did_you_mean
from brainsurgery_jax.op import OPS
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.source import Node, dump_yaml
from brainsurgery_jax.plan.typed import PROMPT, nodes
from brainsurgery_jax.plan.written import write_plan
from brainsurgery_jax.session import Session, StepOutcome
from brainsurgery_jax.wording import counted, list_changes

Next = Literal["step", "confirm", "end"]
"""What is expected next: a step or command, an answer to `confirm`, or nothing."""

Mood = Literal["plain", "done", "caution"]


class Remark(NamedTuple):
    """A line about what was done (`done`), or about what to mind (`caution`)."""

    text: str
    mood: Mood = "plain"


class StepNotes(NamedTuple):
    """Diagnostics of a step that was carried out."""

    diagnostics: tuple[Diagnostic, ...]


Message = Remark | StepNotes | Said | Published


class Reply(NamedTuple):
    """What came of a text: messages in order, the session after it, what is expected next, and the error that stopped
    it. Steps before the one that failed stand."""

    messages: tuple[Message, ...]
    session: Session
    next: Next
    error: PlanError | StoreError | None = None


class Front(Protocol):
    """A front end that shows messages as they come, before the reply is complete."""

    def tell(self, message: Message, /) -> None:
        """Show a message that is not an event of the engine."""
        ...

    def watch(self, *, quiet: bool) -> Any:
        """A context whose value listens to the engine's events, reports among them, while a step runs."""
        ...


class Silence:
    """A front end that waits for the reply."""

    def tell(self, message: Message, /) -> None:
        """Show nothing."""

    @contextmanager
    def watch(self, *, quiet: bool) -> Iterator[Listener]:
        """Listen to nothing."""
        yield ignore


class _Waiting(NamedTuple):
    """A step that waits for the user's consent, and what comes after it."""

    outcome: StepOutcome
    rest: tuple[Node, ...]
    warned: bool


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
    """Holds the session as it stands now. `asks`: somebody can answer questions, such as whether a step that the flag
    `preview` stopped goes on; `talks`: whether every step is answered, as at a prompt. `fold`: how pages of help are
    folded."""

    def __init__(
        self, session: Session, *, quiet: bool = False, talks: bool = True, asks: bool = True,
        front: Front | None = None, fold: pages.Fold = pages.unfolded,
    ):  # fmt: skip
        self.session, self.quiet, self.talks, self.asks, self.fold = session, quiet, talks, asks, fold
        self.kept = session  # what a plan file or an output holds of it
        self.warned = False
        self.plan_files: set[Path] = set()  # written by this session, so that it may write them again
        self._front: Front = front or Silence()
        self._messages: list[Message] = []
        self._waiting: _Waiting | None = None

    def take(self, text: str, first_line: int = 1, file: str = PROMPT) -> Reply:
        """Carry out a command, or steps one after another up to the first that fails. A step that waits for an answer
        is dropped."""
        self._waiting = None
        return self._reply(lambda: self._take(text, first_line, file))

    def confirm(self, go: bool) -> Reply:
        """Answer whether the step that waits is carried out, and go on with those after it."""
        waiting, self._waiting = self._waiting, None
        return self._reply(lambda: "step" if waiting is None else self._confirm(waiting, go))

    def leave(self) -> Reply:
        """Write the outputs and end; where there is no output and steps would be lost, warn once, and stay."""
        return self._reply(self._leave)

    def _reply(self, act: Callable[[], Next]) -> Reply:
        self._messages, error = [], None
        expected: Next = "step"
        try:
            expected = act()
        except (PlanError, StoreError) as bad:
            error = bad
        return Reply(tuple(self._messages), self.session, expected, error)

    def _tell(self, message: Message) -> None:
        self._messages.append(message)
        self._front.tell(message)

    def _remark(self, text: str, mood: Mood = "plain") -> None:
        self._tell(Remark(text, mood))

    def _note(self, found: Sequence[Diagnostic]) -> None:
        if found:
            self._tell(StepNotes(tuple(found)))

    def _run(self, outcome: StepOutcome, *, quiet: bool) -> Session:
        """The session after a step, its reports and outputs among the messages."""
        with self._front.watch(quiet=quiet) as listen:

            def hear(event: Event) -> None:
                if isinstance(event, Said | Published):
                    self._messages.append(event)
                listen(event)

            return outcome.run(hear)

    # --- steps

    def _take(self, text: str, first_line: int, file: str) -> Next:
        name, _, rest = text.strip().partition(" ")
        place = Span(file, first_line, len(text) - len(text.lstrip()) + 1)
        if "\n" not in text.strip() and (name in COMMANDS and not rest.startswith(":")):
            return self.command(name, rest.strip(), place)
        if not rest and "\n" not in text.strip() and (hint := _command_hint(name)):
            raise _mistake("op-unknown", f"'{name}' is neither an op nor a command.{hint}", place, "`help` lists them.")
        warned, self.warned = self.warned, False
        return self._go_on(nodes("\n" * (first_line - 1) + text, file), warned)

    def _go_on(self, left: Sequence[Node], warned: bool) -> Next:
        for at, node in enumerate(left, 1):
            outcome = self.session.step(self.session.understand(node))
            if self._preview(outcome) and self.asks:
                self._waiting = _Waiting(outcome, tuple(left[at:]), warned)
                return "confirm"
            if (ended := self._carry_out(outcome, warned)) is not None:
                return ended
        return "step"

    def _confirm(self, waiting: _Waiting, go: bool) -> Next:
        if not go:
            self._remark("left out")
        elif (ended := self._carry_out(waiting.outcome, waiting.warned)) is not None:
            return ended
        return self._go_on(waiting.rest, waiting.warned)

    def _preview(self, outcome: StepOutcome) -> bool:
        """Show what a step will do, if the flag `preview` is on and it does something."""
        writes = [f"writes {p.path}" for p in outcome.program.publications]
        told = "; ".join(filter(None, [impact(outcome.effects), *writes]))
        if not self.session.state.flags.preview or not told:
            return False
        self._remark(f"preview: {told}")
        return True

    def _carry_out(self, outcome: StepOutcome, warned: bool) -> Next | None:
        """Do a step that is understood; what is expected next, if it ends the session or tries to."""
        before = self.session
        self._note(outcome.program.diagnostics)
        silent = self.quiet or not (outcome.program.checks or outcome.program.publications)
        self.session = self._run(outcome, quiet=silent)  # no bar flashes up where there is nothing to wait for
        if not self.session.state.stopped:
            if self.talks:
                self.answer(outcome, before)
            return None
        after, self.session, self.warned = self.session, before, warned
        if self._stays():  # until it is typed once more nothing has ended
            return "step"
        self.session = after
        return self._leave()

    def answer(self, outcome: StepOutcome, before: Session) -> None:
        """Say in a line what a step did."""
        made = tuple(p for p in outcome.session.plan.inputs if p not in before.plan.inputs)
        moves = impact(outcome.effects, self.session.state.default_alias)
        if made:
            self._remark(f"opened {made[0].path}: {counts(self.session)}", "done")
        elif moves:
            self._remark(moves + " (dry run)" * self.session.state.flags.dry_run, "done")
        elif not outcome.program.checks and not outcome.program.publications:
            self._remark("ok", "done")

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
                self._tell(Said(Text(f"# {counts(self.session)}\n{dump_yaml(self.session.to_plan()).rstrip()}")))
            case "save-plan":
                self.save_plan(rest, span)
            case "help":
                self._tell(Said(Text("\n".join(_help(rest, span, self.fold)))))
            case "exit":
                return self._leave()
            case _:
                return "end"
        return "step"

    def undo(self) -> None:
        old, new = self.session, self.session.undo()
        if new is old:
            self._remark("there is nothing to undo: no step is left", "caution")
            return
        self.session = new
        self._remark(f"undone: {_last_step(old)}; {counted(len(new.steps), 'step')} left", "done")
        for p in old.state.publications[len(new.state.publications) :]:
            self._remark(f"{p.path} was written, and stays", "caution")

    def redo(self) -> None:
        old, self.session = self.session, self.session.redo()
        if self.session is old:
            self._remark("there is nothing to redo: no step was undone last", "caution")
        else:
            self._remark(f"done again: {_last_step(self.session)}", "done")

    def save_plan(self, file: str, span: Span) -> None:
        if not file:
            raise _mistake("command-form", "save-plan needs the name of a file", span, "Write `save-plan plan.yaml`.")
        path = Path(file).expanduser()
        if path.exists() and path.resolve() not in self.plan_files and not self.session.world.overwrite:
            remedy = "Name another file; `repl --overwrite` lets files be replaced."
            raise StoreError(path, "exists already, and no plan is written over it", remedy=remedy)
        plan = self.session.to_plan()
        write_plan(file, dump_yaml(plan))
        told = f" ({counted(out, 'step')} that only printed left out)" if (out := self._count_reports()) else ""
        self._remark(f"wrote {file}: {counted(len(plan['transforms']), 'step')}{told}", "done")
        self.plan_files.add(path.resolve())
        self.kept = self.session

    def _count_reports(self) -> int:
        return len(self.session.only_told)

    # --- the end

    def _leave(self) -> Next:
        if self._stays():
            return "step"
        outcome = self.session.finish()
        self._note(outcome.program.diagnostics)
        self._run(outcome, quiet=self.quiet)
        if self.session.state.flags.dry_run and not self.quiet:
            self._remark("dry run: nothing was written", "done")
        return "end"

    def _stays(self) -> bool:
        """Whether leaving would lose steps, and the user is told of it for the first time."""
        if not self.asks or self.warned or self.session.plan.outputs or not (lost := self._count_unsaved()):
            return False
        self.warned = True
        told = f"{counted(lost, 'step')} would be lost: there is no output. Once more to leave."
        self._remark(told, "caution")
        self._remark("`save: out.safetensors` writes the tensors, `save-plan plan.yaml` the steps.", "caution")
        return True

    def _count_unsaved(self) -> int:
        """Steps since the last plan or checkpoint was written."""
        now, kept = self.session, self.kept
        if len(now.state.publications) > len(kept.state.publications):
            return 0
        known = set(map(id, kept.steps))
        return sum(id(step) not in known and at not in now.only_told for at, step in enumerate(now.steps))


def is_unfinished(text: str) -> bool:
    """Whether more lines belong to a text before it is a step: an empty line ends every text."""
    first, *others = text.split("\n")
    if not text.strip() or (others and not others[-1].strip()):
        return False
    if is_open(first) and not first.startswith("- "):
        return is_open(text)  # brackets over several lines end with the last of them
    if others and all(line[:1].isalpha() and not is_unfinished(line) for line in (first, *others)):
        return False  # a step on each line, as it was pasted
    return bool(others) or is_open(text) or first.startswith("- ") or _opens_block(first)


def _opens_block(line: str) -> bool:
    """Whether a line is the name of an op whose keys must follow below."""
    name = line.strip().removesuffix(":").rstrip()
    op = OPS.get(name) if line.rstrip().endswith(":") else None
    return line.strip() == "transforms:" or (op is not None and any(map(is_required, op.fields())))


def _mistake(code: str, message: str, span: Span, hint: str) -> PlanError:
    return PlanError([Diagnostic(code, message, span, hint)])


def impact(effects: Sequence[Any], default: str | None = None) -> str:
    """What steps do to the names, those of the default alias without it."""
    head = f"{default}::" if default else ""
    every = [effect for outer in effects for _, effect in outer.walk()]
    words = ("created", "changed", "deleted", "configured")
    names = {word: dict.fromkeys(n.removeprefix(head) for e in every for n in getattr(e, word)) for word in words}
    return list_changes(names, MOST_NAMES)


def counts(session: Session) -> str:
    """The aliases, and how many tensors each holds."""
    spaces = session.state.spaces
    return ", ".join(f"{a}:: {counted(len(s.names), 'tensor')}" for a, s in spaces.items()) or "no checkpoint yet"


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


def _help(name: str, span: Span, fold: pages.Fold) -> list[str]:
    if name:
        try:
            return pages.page(pages.find(name), fold)
        except Refusal as bad:
            raise _mistake(bad.code, bad.message, span, "`help` alone lists them all.") from bad
    width = max(map(len, COMMANDS))
    return [
        *pages.overview(fold)[:-1],
        "A step is a line, `copy: from: wte.weight, to: tok.weight`, or a YAML block that an empty line ends.",
        "",
        "commands of the prompt",
        *(line for n, c in COMMANDS.items() for line in fold(f"  {n.ljust(width)}  ", c.does)),
        "",
        "Ctrl-C stops a step that runs, and leaves all as it was before it.",
    ]
