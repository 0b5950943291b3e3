"""How a command is stopped: by Ctrl-C between two items of a run, by SIGTERM and SIGHUP at once. What it was writing is
removed, and a line says what happened."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brainsurgery_jax.engine.events import Event
    from brainsurgery_jax.run_options import RunOptions

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_WORDS = {"SIGTERM": "terminated", "SIGHUP": "hung up"}


class Terminated(SystemExit):
    """A signal terminated the process. Its exit code is 128 plus the number of the signal, as in shells."""

    def __init__(self, number: int):
        self.exit_code = 128 + number
        super().__init__(self.exit_code)
        self.word = _WORDS[signal.Signals(number).name]


@contextmanager
def stopping() -> Iterator[None]:
    """A block in which these signals raise Terminated, once: what is then cleaned up is not disturbed by another. One
    that the caller has made this process ignore, as `nohup` does, stays ignored."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        for other in ours:
            signal.signal(other, signal.SIG_IGN)
        raise Terminated(number)

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


class CtrlC:
    """The stop signal of a run, set by Ctrl-C while the run looks at it. A second Ctrl-C, or one at another moment,
    raises KeyboardInterrupt at once."""

    def __init__(self, options: RunOptions):
        self._listen = options.listen
        self._is_set = self._is_looked_at = False

    def is_set(self) -> bool:
        """Whether the run is to stop."""
        return self._is_set

    def hear(self, event: Event) -> None:
        """Note whether the run looks at the signal. A listener."""
        from brainsurgery_jax.engine.events import Finishing, Started

        if isinstance(event, Started):
            self._is_looked_at = True
        elif isinstance(event, Finishing):
            self._is_looked_at = False
            if self._is_set:  # since the run looked last
                raise KeyboardInterrupt
        if self._listen is not None:
            self._listen(event)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT."""
        if self._is_set or not self._is_looked_at:
            raise KeyboardInterrupt
        self._is_set = True


@contextmanager
def stop_by_ctrl_c(options: RunOptions) -> Iterator[RunOptions]:
    """Options for one run, which Ctrl-C stops between two items of its work."""
    before: object = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield options
        return
    from dataclasses import replace  # `--help` does not wait for it

    stop = CtrlC(options)
    signal.signal(signal.SIGINT, stop.handle)
    try:
        yield replace(options, listen=stop.hear, stop=stop)
    finally:
        signal.signal(signal.SIGINT, before)
