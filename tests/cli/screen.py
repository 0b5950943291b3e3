"""A terminal for tests: a program on a real pseudo-terminal, and what a person would see of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from select import select

import pyte

PATIENCE_S = 900.0  # a guard against a program that hangs; a busy machine may take minutes
# The terminal is made by a process of its own: this one may have loaded JAX, and must not fork.
BRIDGE = """\
import os, pty, sys
size, *line = sys.argv[1:]
sys.exit(os.waitstatus_to_exitcode(pty.spawn(["sh", "-c", f'stty {size}; exec "$@"', "sh", *line])))
"""


class Screen:
    """A program on a terminal of its own. Keys go in, `text` is what is on the screen."""

    def __init__(
        self, line: list[str], folder: Path, environment: Mapping[str, str], rows: int = 30, columns: int = 160
    ):
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        variables = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}  # the terminal knows
        bridge = [sys.executable, "-c", BRIDGE, f"rows {rows} cols {columns}", *line]
        self.process = subprocess.Popen(
            bridge, cwd=folder, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.screen.write_process_input = self.keys  # a terminal that is asked where its cursor is, answers

    @property
    def text(self) -> str:
        """The rows that are not empty, without blanks at their ends."""
        return "\n".join(row.rstrip() for row in self.screen.display if row.strip())

    def keys(self, data: str) -> None:
        """Press keys."""
        assert self.process.stdin is not None
        self.process.stdin.write(data.encode())
        self.process.stdin.flush()

    def until(self, seen: str | Callable[[str], bool]) -> str:
        """Read until a regex is found on the screen, or a condition on it holds; what is on it then."""
        holds = seen if callable(seen) else lambda text: re.search(seen, text, re.MULTILINE) is not None
        deadline = time.monotonic() + PATIENCE_S
        while not holds(self.text):
            assert time.monotonic() < deadline, f"waited for {seen!r}, saw:\n{self.text}"
            self._read()
        return self.text

    def end(self) -> int:
        """Read to the end of the program; its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read() or self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running:\n{self.text}"
        self.close()
        return self.process.returncode

    def close(self) -> None:
        """End the program, whatever it does."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> bool:
        """Read what is there, if anything comes soon."""
        assert self.process.stdout is not None
        file = self.process.stdout
        if file.closed or not select([file], [], [], 0.1)[0] or not (got := os.read(file.fileno(), 65536)):
            return False
        self.raw += got
        self.stream.feed(got)
        return True
