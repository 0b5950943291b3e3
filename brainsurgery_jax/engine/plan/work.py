"""The types of work: the pieces that a run performs, one by one or several at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from math import prod
from typing import NamedTuple

from brainsurgery_jax.engine.plan.blocks import cuts
from brainsurgery_jax.engine.plan.footprint import FOLDS
from brainsurgery_jax.engine.plan.schedule import Asked, Root, Task, Written
from brainsurgery_jax.graph.expr import Expr, asked_of
from brainsurgery_jax.index.boxes import Box, box_shape
from brainsurgery_jax.protocol import Pending
from brainsurgery_jax.store.base import FileRun


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources of a process: bytes of host memory, threads, and accelerators with `bytes_each`. `sharing`: the
    processes of the run on the same machine; memory and threads are the share of one. `processes`: all of the run, each
    on such a machine."""

    host_bytes: int
    threads: int
    devices: int = 0
    bytes_each: int = 0
    sharing: int = 1
    processes: int = 1


class Site(Enum):
    """Where a call on whole operands is computed: on the host, on one accelerator, in a batch over all accelerators,
    sharded over all of them (on the host if it proves impossible to shard), or sharded over several processes."""

    HOST = "host"
    DEVICE = "device"
    BATCH = "batch"
    SHARDED = "sharded"
    SHARED = "shared"


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

    @property
    def target(self) -> tuple[object, ...]:
        return self.publication, self.name, self.shift

    @property
    def bits(self) -> int:
        """Bits that are written for an element."""
        return self.expr.aval.dtype.bits


class Ask(NamedTuple):
    """Question number `number` of the program, answered from `parts` partial results."""

    number: int
    question: Pending
    parts: int

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return asked_of(self.question)

    @property
    def target(self) -> tuple[object, ...]:
        return (self.number,)

    @property
    def bits(self) -> int:
        """Nothing is written."""
        return 0


Sink = Put | Ask


class Transfer(NamedTuple):
    """Bytes of a file that are copied to tensor `name`, from element `at` on. `bits`: the size of an element."""

    publication: int
    name: str
    at: int
    run: FileRun
    bits: int

    @property
    def target(self) -> tuple[object, ...]:
        return self.publication, self.name


class Passage(NamedTuple):
    """Elements `start:stop` of the tensors of several sinks, which are streamed together."""

    sinks: tuple[Sink, ...]
    start: int
    stop: int

    @property
    def place(self) -> tuple[int, int]:
        return self.start, self.stop

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return tuple(e for sink in self.sinks for e in sink.exprs)

    @property
    def questions(self) -> tuple[Pending, ...]:
        return tuple(sink.question for sink in self.sinks if isinstance(sink, Ask))


class Portion(NamedTuple):
    """A box of tensors. The sinks have the same tensor, or are a single question."""

    sinks: tuple[Sink, ...]
    box: Box

    @property
    def place(self) -> tuple[Box]:
        return (self.box,)

    @property
    def size(self) -> int:
        return prod(box_shape(self.box))

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return self.sinks[0].exprs

    @property
    def questions(self) -> tuple[Pending, ...]:
        return tuple(sink.question for sink in self.sinks if isinstance(sink, Ask))


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
    calls. `sites`: where the calls are computed. `size`: calls of a full batch, 1 without a batch. `shared`: calls that
    the first `sharers` processes compute together."""

    tasks: tuple[Task, ...]
    work: tuple[tuple[tuple[Light, ...], ...], ...]
    sites: tuple[Site, ...]
    size: int = 1
    shared: tuple[Expr, ...] = ()
    sharers: int = 1


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


class Delivery(NamedTuple):
    """Where a part of a piece of work goes: its end, the place in it, and the bytes that are written there."""

    end: Sink | Transfer | Root
    place: tuple[object, ...]
    nbytes: int


def deliveries(work: Work) -> Iterator[Delivery]:
    """All that a piece of work writes or answers; nothing for folds, whose values are kept in memory."""
    match work:
        case Fold():
            pass
        case Copy(transfers):
            yield from (Delivery(t, (t.at, t.run.nbytes), t.run.nbytes) for t in transfers)
        case Stream(parts) | Boxes(_, parts):
            for p in parts:
                yield from (Delivery(s, p.place, p.size * s.bits // 8) for s in p.sinks)
        case Whole(tasks):
            roots = (root for task in tasks for root in task.roots)
            yield from (Delivery(r, (), r.expr.aval.nbytes if isinstance(r, Written) else 0) for r in roots)


def item_of(work: Work, host_bytes: int, reads: int, device_bytes: int = 0, needs: tuple[str, ...] = ()) -> WorkItem:
    """The item of a piece of work. Its key is a digest of the kind of the work, its targets, and the keys of the items
    that it needs."""
    digest, writes = blake2b("".join((type(work).__name__, *needs)).encode(), digest_size=8), 0
    for delivery in deliveries(work):
        digest.update(repr((*delivery.end.target, *delivery.place)).encode())
        writes += delivery.nbytes
    if isinstance(work, Fold):
        for numbered in enumerate(call.kernel.name if call.kernel else "" for call in work.calls):
            digest.update(repr(numbered).encode())
    return WorkItem(work, digest.hexdigest(), host_bytes, device_bytes, reads, writes, needs)


def sharers_of(item: WorkItem) -> int:
    """The number of processes that compute an item together, the first of the run; 1 if one does it alone."""
    return item.work.sharers if isinstance(item.work, Whole) else 1


def parts_of(work: Work) -> tuple[Light | Whole, ...]:
    """The parts of a piece of work that may be performed at the same time. Cuts follow from sizes alone."""
    match work:
        case Stream((p,)):
            return tuple(Stream((p._replace(start=start, stop=stop),)) for start, stop in cuts(p.start, p.stop))
        case Fold():
            return tuple(part for item in work.items for part in parts_of(item.work))
        case _:
            return (work,)


def tensors_of(work: Work) -> tuple[tuple[int, str], ...]:
    """The tensors that a piece of work writes, or parts of them: number of the publication, and name."""
    written = (t.end for t in deliveries(work) if isinstance(t.end, Put | Transfer | Written))
    return tuple(dict.fromkeys((end.publication, end.name) for end in written))


def questions_of(work: Work) -> tuple[int, ...]:
    """The numbers of the questions that a piece of work answers, at least in part."""
    match work:
        case Copy() | Fold():
            return ()
        case Stream(parts) | Boxes(_, parts):
            return tuple(dict.fromkeys([s.number for p in parts for s in p.sinks if isinstance(s, Ask)]))
        case Whole(tasks):
            return tuple(dict.fromkeys([r.number for task in tasks for r in task.roots if isinstance(r, Asked)]))


def results_held(fold: Fold) -> int:
    """Bytes that the results of folds take, during the fold and after it."""
    return WAITING * len(fold.calls) + FOLDS * sum(a.nbytes for call in fold.calls for a in call.avals)


WAITING = 256 << 10
"""Bytes of unmerged partial results of a fold, however small its result is."""
