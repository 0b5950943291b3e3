"""Text for people: results on stdout, everything else on stderr, colours only on a terminal."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable
from contextlib import suppress
from shutil import get_terminal_size
from typing import TextIO

from brainsurgery_jax.cli import log
from brainsurgery_jax.documents import Document
from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.rendering.data import as_json, diagnostic_data, store_error_data
from brainsurgery_jax.rendering.text import as_text

# What a name from a checkpoint must not do to a terminal. Line ends and tabs are ours. Marks of direction let a
# name look like another, and the two separators begin a line.
_MARKS = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
_UNSAFE = {c: f"\\x{c:02x}" for c in (*range(9), *range(11, 32), *range(127, 160))} | {c: f"\\u{c:04x}" for c in _MARKS}


def result(text: str) -> None:
    """Print a line (or several) of the result. A reader who went away is no error: what is left is dropped."""
    _print(text.translate(_UNSAFE), sys.stdout)


def report(document: Document) -> None:
    """Print a document as text, paragraphs folded to the terminal's width."""
    result(as_text(document, hanging))


def json(**keys: object) -> None:
    """Print the keys, and the version of the schema, as a JSON object."""
    result(as_json(**keys))


def failure(found: Iterable[dict[str, object]], code: int) -> None:
    """Print why a command failed, as JSON. `found`: diagnostics as data."""
    json(ok=False, exit_code=code, diagnostics=list(found))


def remark(text: str, style: str = "") -> None:
    """Print a line on stderr."""
    if log.is_json():
        log.write_event("remark", text=text)
    elif style and sys.stderr.isatty():
        _print_styled(text.translate(_UNSAFE), [(style, len(text))])
    else:
        _print(text.translate(_UNSAFE), sys.stderr)


def diagnostics(found: Iterable[Diagnostic]) -> None:
    """Print diagnostics in the order of the plan, `file:line:column` first."""
    for diagnostic in in_order(found):
        if log.is_json():
            log.write_event("diagnostic", **diagnostic_data(diagnostic))
            continue
        text = str(diagnostic).translate(_UNSAFE)
        if sys.stderr.isatty():
            place = len(str(diagnostic.span)) + 1 if diagnostic.span else 0
            first = text.find("\n") if "\n" in text else len(text)
            message = "red" if diagnostic.severity == "error" else "yellow"
            _print_styled(text, [("bold", place), (message, first - place), ("dim", len(text) - first)])
        else:
            _print(text, sys.stderr)


def in_order(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Sorted by place, files in the order of first mention; what has no place comes first."""
    listed = list(found)
    files = list(dict.fromkeys(d.span.file for d in listed if d.span))
    return sorted(listed, key=lambda d: (files.index(d.span.file), d.span.line, d.span.col) if d.span else (-1, 0, 0))


def exit_code(found: Iterable[Diagnostic]) -> int:
    """0 without errors, 3 if all of them are about reading or writing checkpoints, else 1."""
    errors = [d for d in found if d.severity == "error"]
    if not errors:
        return 0
    return 3 if all(d.code.startswith("io-") for d in errors) else 1


def store_error(error: StoreError) -> None:
    """Print an error of a checkpoint."""
    if log.is_json():
        log.write_event("diagnostic", **store_error_data(error))
    else:
        remark(str(error), "red")


def print_stop(what: str, stop: BaseException) -> None:
    """Print that a command was stopped from outside, and the notes on what it had published."""
    if log.is_json():
        log.write_event("stopped", reason=what, notes=list(getattr(stop, "__notes__", ())))
        return
    with suppress(OSError):  # the terminal may have gone away first
        remark(("; " if ":" in what else ": ").join([what, *getattr(stop, "__notes__", ())]), "yellow")


def hanging(head: str, text: str) -> list[str]:
    """A line that starts with `head`, folded to the terminal's width; in a pipe one long line."""
    if not sys.stdout.isatty():
        return [f"{head}{text}".rstrip()]
    width = max(get_terminal_size().columns, 60)
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
                         break_on_hyphens=False) or [head.rstrip()]  # fmt: skip


def flush() -> None:
    """Hand over what is buffered; a reader who went away is no error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _drop(stream)


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _drop(stream)


def _print_styled(text: str, parts: Iterable[tuple[str, int]]) -> None:
    from rich.console import Console
    from rich.text import Text

    styled, at = Text(text), 0
    for style, length in parts:
        styled.stylize(style, at, at + length)
        at += length
    Console(stderr=True).print(styled, soft_wrap=True, highlight=False)


def _drop(stream: TextIO) -> None:
    """Point a stream at nothing, so that neither later text nor the interpreter's last flush fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
