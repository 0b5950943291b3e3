"""Work that a signal must not cut in two: renames, and the removal of what a stopped run leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to stop."""


@contextmanager
def defer_signals() -> Iterator[None]:
    """A block during which signals that would stop the process wait: they are raised right after it.

    Python handles signals in the main thread; in others none can come in between.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    try:
        for number in STOPPING:
            if callable(handler := signal.getsignal(number)) or handler is signal.SIG_DFL:
                before[number] = handler
                signal.signal(number, note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
