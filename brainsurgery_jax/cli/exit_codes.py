"""The exit codes of the command, each with its one meaning."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ended with. Signals are 128 plus their number, as in shells."""

    DONE = 0
    WRONG = 1
    USAGE = 2
    FILES = 3
    DEFECT = 70
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.WRONG: "the plan is wrong, a check did not hold, or the two checkpoints differ",
    ExitCode.USAGE: "wrong usage: an option, an argument or a comparison that is impossible",
    ExitCode.FILES: "a file could not be read or written, results not printed, or another process of the run failed",
    ExitCode.DEFECT: "a defect of this tool",
    ExitCode.HUNG_UP: "hung up (SIGHUP)",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C, SIGINT)",
    ExitCode.TERMINATED: "terminated (SIGTERM)",
}
"""For the manual."""
