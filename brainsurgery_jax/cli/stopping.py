"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it was writing is removed, and a line says what happened."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_WORDS = {"SIGTERM": "terminated", "SIGHUP": "hung up"}


class Stopped(SystemExit):
    """The process was told to stop by a signal. Its exit code is 128 and the number, as shells have it."""

    def __init__(self, number: int):
        self.exit_code = 128 + number
        super().__init__(self.exit_code)
        self.word = _WORDS[signal.Signals(number).name]


@contextmanager
def stopping() -> Iterator[None]:
    """A block in which these signals raise Stopped, once: what is then cleaned up is not disturbed by another. One that
    the caller has made this process ignore, as `nohup` does, stays ignored."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        for other in ours:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
