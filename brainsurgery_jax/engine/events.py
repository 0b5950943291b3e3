"""What a run tells while it goes on: typed values, handed to whoever listens (a progress bar, a log, a test)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from brainsurgery_jax.documents import Document
from brainsurgery_jax.errors import Diagnostic


class Started(NamedTuple):
    """The work is planned: bytes to write, how many tensors need computing or checking, and the bytes of each tensor
    that is written, by name (of all outputs together)."""

    nbytes: int
    tasks: int
    sizes: Mapping[str, int]


class Wrote(NamedTuple):
    """Bytes of an output tensor are in their place: all, or some of them."""

    name: str
    nbytes: int


class Said(NamedTuple):
    """The report of a plan's step (`dump`, `diff`), in the order of the plan."""

    document: Document


class Factorized(NamedTuple):
    """A matrix was factorized: the tensors it was made of, its shape, the method taken, and what is known of the result
    (`energy`: the share of the squared norm that is kept; `excess`: a bound on error / least possible error - 1)."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    method: str
    facts: Mapping[str, float]
    seconds: float


class Noted(NamedTuple):
    """Something that may surprise came up while the plan ran."""

    diagnostic: Diagnostic


class Published(NamedTuple):
    """A checkpoint stands at its destination, with these side files."""

    path: str
    nbytes: int
    tensors: int
    side_files: tuple[str, ...] = ()


Event = Started | Wrote | Said | Factorized | Noted | Published
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
