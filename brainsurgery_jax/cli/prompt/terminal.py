"""The prompt on a terminal: lines are edited, completed and coloured here, and what a step would do is told below them.

The only module that imports prompt_toolkit; loaded when a prompt is opened, and by nothing else.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import get_terminal_size

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, get_common_complete_suffix
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import is_dumb_terminal

from brainsurgery_jax import plugins
from brainsurgery_jax.cli import log, show
from brainsurgery_jax.cli.prompt.glance import glance
from brainsurgery_jax.cli.prompt.mistakes import tell
from brainsurgery_jax.completion.candidates import complete
from brainsurgery_jax.desk import COMMANDS, Desk, counts, is_unfinished
from brainsurgery_jax.op import ASSERTS, OPS
from brainsurgery_jax.version import __version__

NAME = "brainsurgery> "
DEBOUNCE_S = 0.15
PATIENCE_S = 1.0
STYLE = Style.from_dict({
    "prompt": "ansicyan bold", "more": "ansibrightblack", "bottom-toolbar": "noreverse",
    "op": "ansigreen bold", "key": "ansiblue", "alias": "ansimagenta", "capture": "ansiyellow", "quoted": "ansiyellow",
    "comment": "ansibrightblack italic", "good": "ansigreen", "bad": "ansired", "dim": "ansibrightblack",
})  # fmt: skip


def converse(desk: Desk) -> None:
    """Read and do steps until the user leaves."""
    show.diagnostics(plugins.look_up())  # so that ops of installed packages complete like others
    show.remark(f"brainsurgery-jax {__version__} | {counts(desk.session)}")
    show.remark(_first_words(desk))
    looking = ThreadPoolExecutor(1, "brainsurgery-look")
    try:
        line = PlainLine() if is_dumb_terminal() else Line(desk, looking)
        while _goes_on(desk, line):
            pass
    finally:
        looking.shutdown(wait=False, cancel_futures=True)


def _first_words(desk: Desk) -> str:
    start = "Type a step" if desk.session.state.spaces else "`load: PATH` opens a checkpoint"
    return f"{start}. Tab completes, `help` lists the ops, Ctrl-D leaves."


def _goes_on(desk: Desk, line: Line | PlainLine) -> bool:
    """Read a text and do it; whether there is to be another. Whatever goes wrong, the session is as it was before the
    step."""
    text = ""
    try:
        text = line.read()
        if not text:
            return True
        reply = desk.leave() if text == LEAVE else desk.take(text)
        while reply.next == "confirm":
            reply = desk.confirm(_ask("go?"))
        if reply.error is not None:
            tell(reply.error, text, len(NAME))
        return reply.next != "end"
    except KeyboardInterrupt as stop:
        if text:
            show.print_stop("interrupted: the session is as it was before the step", stop)
    except Exception as defect:  # a session is worth more than one step: it outlives our defects, and drivers'
        blamed = plugins.blamed(defect)  # an op that the user wrote
        show.remark(str(blamed or f"Sorry, this is a defect: {type(defect).__name__}: {defect}"), "red")
        show.remark("The session is as it was before the step.")
        log.print_traceback(defect)
    return True


LEAVE = "\x04"
"""What Ctrl-D on an empty line stands for."""


def _ask(question: str) -> bool:
    """Ask go or no-go; nothing, the end of input and Ctrl-C are no."""
    words = {"go": True, "g": True, "yes": True, "y": True, "": False, "no-go": False, "nogo": False, "no": False,
             "n": False}  # fmt: skip
    with suppress(EOFError, KeyboardInterrupt):
        while (answer := input(f"{question} [go / no-go] ").strip().lower()) not in words:
            show.remark("Answer go or no-go.")
        return words[answer]
    return False


class PlainLine:
    """A line on a terminal that can do nothing but print: no completion, no history, no colours."""

    def read(self) -> str:
        """The next text; `LEAVE` after Ctrl-D. Raises KeyboardInterrupt after Ctrl-C."""
        try:
            text = input(NAME)
            while is_unfinished(text):
                text += "\n" + input("... ".rjust(len(NAME)))
        except EOFError:
            print()
            return LEAVE
        except KeyboardInterrupt:
            print()
            raise
        return text.rstrip()


class Line:
    """The line that is edited. `read` yields what was typed."""

    def __init__(self, desk: Desk, looking: ThreadPoolExecutor):
        self.desk, self.looking = desk, looking
        self.below: StyleAndTextTuples = []
        self.changed: asyncio.Event | None = None
        history = open_history(state_folder(os.environ), lambda why: show.remark(why, "yellow"))
        self.session: PromptSession[str] = PromptSession(
            [("class:prompt", NAME)], multiline=True, history=history, lexer=Colours(), completer=Completing(desk),
            complete_while_typing=True, complete_in_thread=True, key_bindings=_keys(), style=STYLE,
            prompt_continuation=_continuation, bottom_toolbar=self.toolbar, enable_suspend=True,
        )  # fmt: skip
        self.session.default_buffer.on_text_changed += lambda _: self.changed.set() if self.changed else None

    def read(self) -> str:
        """The next text; `LEAVE` after Ctrl-D. Raises KeyboardInterrupt after Ctrl-C."""
        self.below = self.idle()
        try:
            return self.session.prompt(pre_run=self.begin).rstrip()
        except EOFError:
            return LEAVE

    def begin(self) -> None:
        self.changed = asyncio.Event()
        get_app().create_background_task(self.look())

    async def look(self) -> None:
        """Tell, a moment after each change, what the text would do; a look that takes long is waited for, and no other
        is begun meanwhile."""
        assert self.changed is not None
        loop, app = asyncio.get_running_loop(), get_app()
        while True:
            await self.changed.wait()
            await asyncio.sleep(DEBOUNCE_S)
            self.changed.clear()
            text = self.session.default_buffer.text
            found = loop.run_in_executor(self.looking, glance, text, self.desk.session)
            done, _ = await asyncio.wait([found], timeout=PATIENCE_S)
            if not done:
                self.below = [("class:dim", "matching ...")]
                app.invalidate()
            try:
                kind, told = await found
            except Exception:  # a look ahead must never disturb who is typing; the step itself will tell
                kind, told = "", ""
            self.below = [(f"class:{kind}", told)] if told else self.idle()
            app.invalidate()

    def toolbar(self) -> StyleAndTextTuples:
        """The line below, cut to the width of the terminal."""
        width, out = get_terminal_size().columns - 1, []
        for style, text, *_ in self.below:
            out.append((style, text if len(text) <= width else text[: width - 1] + "…"))
        return out

    def idle(self) -> StyleAndTextTuples:
        """What is said while nothing is typed."""
        flags = self.desk.session.state.flags
        on = [f"[{name.replace('_', '-')}] " for name, value in flags._asdict().items() if value]
        outputs = ", ".join(o.path for o in self.desk.session.plan.outputs)
        leaving = f"Ctrl-D writes {outputs} and leaves" if outputs else "Ctrl-D leaves"
        words = " | Tab completes | Alt-Enter new line | undo redo show save-plan help"
        return [("class:bad", "".join(on)), ("class:dim", leaving + words)]


def _continuation(width: int, line: int, wrapped: int) -> StyleAndTextTuples:
    return [("class:more", "... ".rjust(width))]


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        chosen = buffer.complete_state and buffer.complete_state.current_completion
        if chosen and chosen.text.endswith((" ", ".", ":", "/")):
            buffer.complete_state = None  # the candidate is taken, and something must follow it
        elif is_unfinished(buffer.text):
            buffer.insert_text("\n" + _indent(buffer.document))
        else:
            buffer.validate_and_handle()

    @keys.add("tab")
    def _(event: KeyPressEvent) -> None:
        _complete(event.current_buffer)

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n" + _indent(event.current_buffer.document))

    return keys


def _complete(buffer: Buffer) -> None:
    """Go on as far as there is one way to; then walk through the ways there are.

    Candidates are asked for at once, not when the menu comes up: Tab may be pressed before.
    """
    state = buffer.complete_state
    if state is not None and len(state.completions) == 1:
        buffer.complete_state = state = None  # a choice of one is no circle: what may follow it comes next
    if state is not None and state.current_completion is not None:
        buffer.complete_next()
        return
    found = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
    if len(found) == 1:
        buffer.apply_completion(found[0])
        buffer.start_completion()
    elif common := get_common_complete_suffix(buffer.document, found):
        buffer.insert_text(common)
        buffer.start_completion()
    elif state is not None:
        buffer.complete_next()
    else:
        buffer.start_completion()


def _indent(document: Document) -> str:
    """The indentation of the next line of a block."""
    line = document.current_line_before_cursor
    lead = line[: len(line) - len(line.lstrip())]
    deeper = line.rstrip().endswith(":")
    if line.lstrip().startswith("- "):
        return lead + "  " * (2 if deeper else 0)
    return lead + "  " * deeper


class Completing(Completer):
    """Our candidates in prompt_toolkit's form."""

    def __init__(self, desk: Desk):
        self.desk = desk

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text, line = document.text_before_cursor, document.current_line_before_cursor
        if not complete_event.completion_requested and (not line or not text.strip()):
            return  # every op there is would be no help
        for found in complete(text, self.desk.session, COMMANDS):
            yield Completion(found.text, found.start, display=found.display, display_meta=found.meta)


_TOKENS = re.compile(
    r"""(?P<comment>(?:(?<=\s)|^)\#.*)
      | (?P<quoted>'(?:[^']|'')*'?|"(?:[^"\\]|\\.)*"?)
      | (?P<key>[\w-]+(?=\s*:(?!:)))
      | (?P<alias>[\w.-]+::)
      | (?P<capture>\\\d|\\g<\w+>|\$\{[^}]*\}|(?<![\w.])[$*]\w+)
      | (?P<word>[\w-]+)
    """,
    re.VERBOSE,
)


class Colours(Lexer):
    """OLY and YAML alike: ops, keys, aliases, captures, quotes, comments."""

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        return lambda number: list(_colour(document.lines[number]))


def _colour(line: str) -> Iterator[tuple[str, str]]:
    at = 0
    for found in _TOKENS.finditer(line):
        kind, text = found.lastgroup or "", found[0]
        yield "", line[at : found.start()]
        begins = not line[: found.start()].strip(" -")
        if (begins and (text in OPS or text in COMMANDS)) or (kind == "key" and text in ASSERTS):
            kind = "op"
        yield f"class:{kind}" if kind != "word" else "", text
        at = found.end()
    yield "", line[at:]


# --- History ----------------------------------------------------------------------------------------------------------


def state_folder(environment: os._Environ[str] | dict[str, str]) -> Path:
    """Where the history is kept."""
    home = environment.get("XDG_STATE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state") / "brainsurgery-jax"


def open_history(folder: Path, tell_why: Callable[[str], None]) -> History:
    """The history of earlier sessions, in a file that only its owner can read. If it cannot be kept, one that lasts as
    long as the session, and why is told."""
    file = folder / "history"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "rb") as opened:
            os.chmod(file, 0o600)
            if bad := _damage(opened.read()):
                tell_why(f"your input is not saved: {file} is not a history file ({bad}). Remove it to start anew.")
                return InMemoryHistory()
    except OSError as error:
        tell_why(f"the history cannot be saved: {error.strerror}: {file}")
        return InMemoryHistory()
    return PersistentHistory(str(file), tell_why)


def _damage(content: bytes) -> str:
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return "it contains bytes that are not text"
    odd = next((at for at, line in enumerate(lines, 1) if line[:1] not in ("", "#", "+")), None)
    return "" if odd is None else f"line {odd} is not a line of ours"


class PersistentHistory(History):
    """A history in a file. A failed write is reported once and stops nothing."""

    def __init__(self, file: str, tell_why: Callable[[str], None]):
        super().__init__()
        self.inner, self.tell_why = FileHistory(file), tell_why
        self.broken = False

    def load_history_strings(self) -> Iterable[str]:
        return self.inner.load_history_strings()

    def store_string(self, string: str) -> None:
        if self.broken:
            return
        try:
            self.inner.store_string(string)
        except OSError as error:
            self.broken = True
            self.tell_why(f"the history cannot be saved: {error.strerror}: {self.inner.filename}")
