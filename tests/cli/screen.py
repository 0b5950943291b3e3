"""A terminal for tests: a program on a real pseudo-terminal, and what a person would see of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pexpect
import pyte

PATIENCE_S = 60.0


class Screen:
    """A program on a terminal of its own. Keys go in, `text` is what is on the screen."""

    def __init__(
        self, line: list[str], folder: Path, environment: Mapping[str, str], rows: int = 30, columns: int = 160
    ):
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.child = pexpect.spawn(
            line[0], line[1:], cwd=str(folder), env=dict(environment), dimensions=(rows, columns), timeout=PATIENCE_S
        )
        self.child.delaybeforesend = None
        self.screen.write_process_input = self.keys  # a terminal that is asked where its cursor is, answers

    @property
    def text(self) -> str:
        """The rows that are not empty, without blanks at their ends."""
        return "\n".join(row.rstrip() for row in self.screen.display if row.strip())

    def keys(self, data: str) -> None:
        """Press keys."""
        self.child.send(data)

    def until(self, seen: str | Callable[[str], bool]) -> str:
        """Read until a regex is found on the screen, or a condition on it holds; what is on it then."""
        holds = seen if callable(seen) else lambda text: re.search(seen, text, re.MULTILINE) is not None
        deadline = time.monotonic() + PATIENCE_S
        while not holds(self.text):
            assert time.monotonic() < deadline, f"waited for {seen!r}, saw:\n{self.text}\nlast: {self.raw[-200:]!r}"
            self._read()
        return self.text

    def end(self) -> int:
        """Read to the end of the program; its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self.child.isalive() or self._read():
            assert time.monotonic() < deadline, f"still running:\n{self.text}"
            self._read()
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -(self.child.signalstatus or 0)

    def close(self) -> None:
        """End the program, whatever it does."""
        self.child.close(force=True)

    def _read(self) -> bool:
        try:
            got = self.child.read_nonblocking(65536, timeout=0.1)
        except pexpect.TIMEOUT:
            return False
        except pexpect.EOF:
            return False
        self.raw += got
        self.stream.feed(got)
        return True
