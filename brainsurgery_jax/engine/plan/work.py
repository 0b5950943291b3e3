"""The types of work: the pieces that a run performs, one by one or several at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from brainsurgery_jax.engine.plan.blocks import cuts
from brainsurgery_jax.engine.plan.footprint import FOLDS
from brainsurgery_jax.engine.plan.schedule import Asked, Root, Task, Written
from brainsurgery_jax.graph.expr import Expr, asked_of
from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.base import FileRun


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources of a run: bytes of host memory, threads, and accelerators with `bytes_each`. `backend`: the backend
    that JAX compiles for. `process` of `processes`: the part of a run over several hosts."""

    host_bytes: int
    threads: int
    backend: str = "cpu"
    devices: int = 0
    bytes_each: int = 0
    process: int = 0
    processes: int = 1


class Site(Enum):
    """Where a call on whole operands is computed: on the host, on one accelerator, in a batch over all accelerators, or
    sharded over all of them (on the host if it proves impossible to shard)."""

    HOST = "host"
    DEVICE = "device"
    BATCH = "batch"
    SHARDED = "sharded"


class Put(NamedTuple):
    """Where elements are written: element `i` of `expr` becomes element `i + shift` of tensor `name` in publication
    number `publication`."""

    publication: int
    name: str
    expr: Expr
    shift: int

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return (self.expr,)


class Ask(NamedTuple):
    """Question number `number` of the program, answered from `parts` partial results."""

    number: int
    question: Pending
    parts: int

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return asked_of(self.question)


Sink = Put | Ask


class Transfer(NamedTuple):
    """Bytes of a file that are copied to tensor `name`, from element `at` on. `bits`: the size of an element."""

    publication: int
    name: str
    at: int
    run: FileRun
    bits: int


class Passage(NamedTuple):
    """Elements `start:stop` of the tensors of several sinks, which are streamed together."""

    sinks: tuple[Sink, ...]
    start: int
    stop: int


class Portion(NamedTuple):
    """A box of tensors. The sinks have the same tensor, or are a single question."""

    sinks: tuple[Sink, ...]
    box: Box

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return self.sinks[0].exprs


@dataclass(frozen=True, slots=True)
class Copy:
    """Byte runs that are copied from file to file."""

    transfers: tuple[Transfer, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """Ranges of tensors that are computed block by block: one long range, or several that are one block together."""

    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of tensors. `held`: a box of a leaf that is read first, because all of them are computed from it."""

    held: tuple[Expr, Box] | None
    portions: tuple[Portion, ...]


Light = Copy | Stream | Boxes


@dataclass(frozen=True, slots=True)
class Whole:
    """Tasks with calls on whole operands. `work`: for each task and each of its roots, the work on the root after these
    calls. `sites`: where the calls are computed. `size`: calls of a full batch, 1 without a batch."""

    tasks: tuple[Task, ...]
    work: tuple[tuple[tuple[Light, ...], ...], ...]
    sites: tuple[Site, ...]
    size: int = 1


@dataclass(frozen=True, slots=True)
class Fold:
    """Folds that do not depend on each other. Each of `passes` passes performs the parts of `items`."""

    calls: tuple[Expr, ...]
    passes: int
    items: tuple[WorkItem, ...]


Work = Light | Whole | Fold


class WorkItem(NamedTuple):
    """A piece of work and its cost.

    - `key`: a digest of the targets, the same in every run of the plan
    - `host_bytes`: peak host memory of one of its parts
    - `device_bytes`: memory that it holds on each accelerator
    - `reads`, `writes`: tensor bytes. A tensor that a call takes whole counts once
    - `needs`: keys of the items that must be performed first
    """

    work: Work
    key: str
    host_bytes: int
    device_bytes: int
    reads: int
    writes: int
    needs: tuple[str, ...] = ()


def parts_of(work: Work) -> tuple[Light | Whole, ...]:
    """The parts of a piece of work that may be performed at the same time. Cuts follow from sizes alone."""
    match work:
        case Stream((p,)):
            return tuple(Stream((p._replace(start=start, stop=stop),)) for start, stop in cuts(p.start, p.stop))
        case Fold():
            return tuple(part for item in work.items for part in parts_of(item.work))
        case _:
            return (work,)


def shares_of(item: WorkItem) -> Iterator[tuple[Light | Whole, int]]:
    """The parts of an item, each with its share of the bytes that the item reads and writes."""
    parts, moved = parts_of(item.work), item.reads + item.writes
    for at, part in enumerate(parts):
        yield part, moved * (at + 1) // len(parts) - moved * at // len(parts)


def tensors_of(work: Work) -> tuple[tuple[int, str], ...]:
    """The tensors that a piece of work writes, or parts of them: number of the publication, and name."""
    written = (end for end in _ends(work) if isinstance(end, Put | Transfer | Written))
    return tuple(dict.fromkeys((end.publication, end.name) for end in written))


def questions_of(work: Work) -> tuple[int, ...]:
    """The numbers of the questions that a piece of work answers, at least in part."""
    return tuple(dict.fromkeys(end.number for end in _ends(work) if isinstance(end, Ask | Asked)))


def _ends(work: Work) -> Iterator[Sink | Transfer | Root]:
    match work:
        case Fold():
            pass
        case Copy(transfers):
            yield from transfers
        case Stream(passages):
            yield from (sink for p in passages for sink in p.sinks)
        case Boxes(_, portions):
            yield from (sink for p in portions for sink in p.sinks)
        case Whole(tasks):
            yield from (root for task in tasks for root in task.roots)


def results_held(fold: Fold) -> int:
    """Bytes that the results of folds take, during the fold and after it."""
    return WAITING * len(fold.calls) + FOLDS * sum(a.nbytes for call in fold.calls for a in call.avals)


WAITING = 256 << 10
"""Bytes of unmerged partial results of a fold, however small its result is."""
