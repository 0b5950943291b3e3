"""Errors at the prompt, on a terminal: carets under the typed text mark the places."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from shutil import get_terminal_size

from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError
from brainsurgery_jax.plan.typed import PROMPT


def tell(error: PlanError | StoreError, text: str = "", indent: int = 0) -> int:
    """Print an error, with carets under its places in the typed text. Returns the exit code."""
    if isinstance(error, StoreError):
        show.store_error(error)
        return 3
    for found in show.in_order(error.diagnostics):
        if found.span is not None and found.span.file == PROMPT and found.span.line:
            for line in caret(text, found, indent):
                show.remark(line)
            found = replace(found, span=None)
        show.diagnostics([_fold_lines(found)])
    return show.exit_code(error.diagnostics)


def _fold_lines(found: Diagnostic) -> Diagnostic:
    """A diagnostic whose lines break between words, if they go to a terminal."""
    if not sys.stderr.isatty():
        return found
    width = max(get_terminal_size().columns, 60) - 1
    message = "\n".join(_wrap(f"{found.message} [{found.code}]", width))
    hint = "\n".join(_wrap(found.hint, width - 4))
    return replace(found, message=message.removesuffix(f"[{found.code}]").removesuffix(" "), hint=hint)


def _wrap(text: str, width: int) -> list[str]:
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
