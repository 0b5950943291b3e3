"""A limit on the processor time of one search; a busy machine therefore stops no search early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import thread_time

Clock = Callable[[], float]
"""Seconds since some fixed moment."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment at which a search must end."""

    moment: float
    clock: Clock

    def remaining(self) -> float:
        """Return the remaining seconds, always above zero. Raises TimeoutError after the deadline."""
        seconds = self.moment - self.clock()
        if seconds <= 0:
            raise TimeoutError
        return seconds


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """How long a search may take, and the clock that measures it: the processor time of this thread by default."""

    seconds: float = 2.0
    clock: Clock = thread_time

    def start(self) -> Deadline:
        """The deadline of a search that begins now."""
        return Deadline(self.clock() + self.seconds, self.clock)
