"""What the command logs on stderr: text for people or JSON lines for programs, with tracebacks for the asking.

Every line of JSON is an object with the version of the schema, the time, and the kind of its `event`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from time import monotonic
from typing import NamedTuple


class LogFormat(StrEnum):
    """How a log is written."""

    text = "text"
    json = "json"


class _Log(NamedTuple):
    format: LogFormat = LogFormat.text
    tracebacks: bool = False


_TEXT = _Log()
_LOG: ContextVar[_Log] = ContextVar("log", default=_TEXT)  # a NamedTuple does not change


def choose(format: LogFormat, *, tracebacks: bool) -> None:
    """Set how the command logs, until the block of `log_scope` ends."""
    _LOG.set(_Log(format, tracebacks))


def is_json() -> bool:
    """Whether the log is JSON lines. Asked on the main thread alone: others know nothing of it."""
    return _LOG.get().format is LogFormat.json


def shows_tracebacks() -> bool:
    """Whether errors come with their tracebacks."""
    return _LOG.get().tracebacks or bool(os.environ.get("BRAINSURGERY_TRACEBACK"))


def write_event(event: str, **keys: object) -> None:
    """Write a line of JSON. May be called from any thread."""
    from datetime import UTC, datetime

    from brainsurgery_jax.rendering.data import as_json_line

    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    sys.stderr.write(as_json_line(time=time, event=event, **keys) + "\n")
    sys.stderr.flush()


def print_traceback(error: BaseException) -> None:
    """Print the traceback of an error, if tracebacks are shown."""
    if not shows_tracebacks():
        return
    lines = "".join(traceback.format_exception(error))
    if is_json():
        write_event("traceback", error=type(error).__name__, text=lines)
    else:
        print(lines, end="", file=sys.stderr, flush=True)


@contextmanager
def log_scope() -> Iterator[None]:
    """A block that is one command. At its end a log of JSON lines gets a last one, with the exit code."""
    before, begun = _LOG.set(_TEXT), monotonic()
    try:
        yield
    except SystemExit as stop:
        if is_json():
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            write_event("ended", exit_code=code, seconds=round(monotonic() - begun, 3))
        raise
    finally:
        _LOG.reset(before)
