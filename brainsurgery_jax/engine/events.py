"""Events of a run, passed to a listener (a progress bar, a log, a test), and the signal that stops a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from brainsurgery_jax.documents import Document
from brainsurgery_jax.errors import Diagnostic


class Awaiting(NamedTuple):
    """Process `process` of a run over several hosts waits for all `processes` to come to the coordinator."""

    coordinator: str
    process: int
    processes: int


class Started(NamedTuple):
    """The work is planned: bytes to write, how many tensors need computing or checking, and the bytes of each tensor
    that is written, by name (of all outputs together). `items`: the bytes that each item of the work reads and writes,
    by its key, which is the same in every run of the plan. From now on the run can be stopped between two items."""

    nbytes: int
    tasks: int
    sizes: Mapping[str, int]
    items: Mapping[str, int] = MappingProxyType({})


class Advanced(NamedTuple):
    """A part of an item is done, which read and wrote so many bytes. Those of all parts add up to `Started.items`."""

    item: str
    nbytes: int


class Wrote(NamedTuple):
    """Bytes of an output tensor are written: all, or some of them. `item`: the key of the item that wrote them."""

    name: str
    nbytes: int
    item: str = ""


class Said(NamedTuple):
    """The report of a plan's step (`dump`, `diff`), in the order of the plan."""

    document: Document


class Factorized(NamedTuple):
    """A matrix was factorized: the tensors it was made of, its shape, the method taken, and what is known of the result
    (`energy`: the share of the squared norm that is kept; `excess`: a bound on error / least possible error - 1).
    `item`: the key of the item that it belongs to."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    method: str
    facts: Mapping[str, float]
    seconds: float
    item: str = ""


class Noted(NamedTuple):
    """A note on something unexpected. `item`: the key of the item that it belongs to, if any."""

    diagnostic: Diagnostic
    item: str = ""


class Finishing(NamedTuple):
    """All items are done. The outputs are now completed and published; the run looks at its stop signal no more."""


class Published(NamedTuple):
    """A checkpoint is at its destination, with these side files."""

    path: str
    nbytes: int
    tensors: int
    side_files: tuple[str, ...] = ()


Event = Awaiting | Started | Advanced | Wrote | Said | Factorized | Noted | Finishing | Published
Listener = Callable[[Event], None]


class StopSignal(Protocol):
    """A signal that stops a run once it is set, such as a `threading.Event`."""

    def is_set(self) -> bool: ...


class _Never:
    def is_set(self) -> bool:
        return False


NEVER: StopSignal = _Never()
"""The signal of a run that nobody stops."""


def ignore(event: Event) -> None:
    """A listener that does nothing."""
