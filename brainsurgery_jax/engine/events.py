"""What a run tells while it goes on: typed values, handed to whoever listens (a progress bar, a log, a test)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Started(NamedTuple):
    """The work is planned: bytes to write, and how many tensors need computing or checking."""

    nbytes: int
    tasks: int


class Wrote(NamedTuple):
    """Bytes of an output tensor are in their place."""

    name: str
    nbytes: int


class Said(NamedTuple):
    """Text of a plan's step (`dump`, `diff`), in the order of the plan."""

    text: str


class Finished(NamedTuple):
    """A task is done; so many are left."""

    left: int


class Published(NamedTuple):
    """A checkpoint stands at its destination."""

    path: str
    nbytes: int
    tensors: int


Event = Started | Wrote | Said | Finished | Published
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
