"""Which process of a run over several hosts performs which item: balanced by bytes, a function of the items alone.

Items that answer parts of the same question go together, so that its partial results are merged by one process, in the
order of the work: the answer has the same bits, however many processes there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.engine.plan.planner import COPY_BYTES
from brainsurgery_jax.engine.plan.work import Passage, Put, Stream, Whole, WorkItem, item_of, questions_of, sharers_of
from brainsurgery_jax.store.balance import balance

GRAIN = 32
"""What is larger than one part in so many of a process's share is placed first, the largest first."""


class _Unit(NamedTuple):
    """Items that one process performs: their positions, the bytes that they move, whether one of them has calls on
    whole operands, which take longer than their bytes tell, and how many processes share one (1: none is shared)."""

    positions: tuple[int, ...]
    nbytes: int
    whole: bool
    sharers: int


def assign(items: Sequence[WorkItem], processes: int) -> tuple[int, ...]:
    """The number of the process that performs each item.

    An item that several processes compute together is written by one of these; what all of them read counts for none.
    Calls on whole operands are spread first, then what is large: each goes to the process that has the least so far.
    All else follows in the order of the work, so that a process writes to neighbouring tensors, and mostly to files of
    its own. The largest part is at most the mean, and one part in `GRAIN` of it, unless single units are larger.
    """
    homes, loads = [0] * len(items), [0] * processes
    units = _units(items)
    share = sum(unit.nbytes for unit in units) // processes
    for unit in (unit for unit in units if unit.sharers > 1):
        home = min(range(unit.sharers), key=loads.__getitem__)
        loads[home] += unit.nbytes
        _place(unit, home, homes)
    units = [unit for unit in units if unit.sharers == 1]
    apart = [unit for unit in units if unit.whole or unit.nbytes * GRAIN > share]
    for unit, home in _spread(apart, loads):
        _place(unit, home, homes)
    rest = [unit for unit in units if not (unit.whole or unit.nbytes * GRAIN > share)]
    for unit, home in _fill(rest, loads):
        _place(unit, home, homes)
    return tuple(homes)


def cut_long(items: Iterable[WorkItem]) -> list[WorkItem]:
    """The items, where long tensors that are streamed and only written are cut as copies are: into items that several
    processes can take. Cuts are those of blocks, and the same for any number of processes."""
    return [piece for item in items for piece in _cut(item)]


def _cut(item: WorkItem) -> Iterator[WorkItem]:
    match item.work:
        case Stream((Passage((Put() as put,), start, stop) as passage,)) if item.writes > COPY_BYTES:
            step = max(1, COPY_BYTES * 8 // (put.bits * blocks.BLOCK)) * blocks.BLOCK
            ends = [*range(start - start % blocks.BLOCK + step, stop, step), stop]
            done = start
            for end in ends:
                reads = item.reads * (end - start) // (stop - start) - item.reads * (done - start) // (stop - start)
                work = Stream((passage._replace(start=done, stop=end),))
                yield item_of(work, item.host_bytes, reads, item.device_bytes, item.needs)
                done = end
        case _:
            yield item


def split(items: Iterable[WorkItem]) -> tuple[list[WorkItem], list[WorkItem]]:
    """The items that only read, and all others. A question that is also answered while something is written belongs to
    the others as a whole."""
    items = list(items)
    late = {question for item in items if item.writes for question in questions_of(item.work)}
    first = [not item.writes and late.isdisjoint(questions_of(item.work)) for item in items]
    return [i for i, early in zip(items, first, strict=True) if early], [
        i for i, early in zip(items, first, strict=True) if not early
    ]


def shares(item: WorkItem, home: int) -> Iterator[tuple[int, WorkItem]]:
    """The processes that take part in an item, each with what it reads and writes of it."""
    if (count := sharers_of(item)) == 1:
        yield home, item
        return
    for process in range(count):
        yield process, item._replace(reads=item.reads // count, writes=item.writes if process == home else 0)


def _place(unit: _Unit, home: int, homes: list[int]) -> None:
    for position in unit.positions:
        homes[position] = home


def _units(items: Sequence[WorkItem]) -> list[_Unit]:
    """Items that share a question, and all others alone, in the order of their first items."""
    parent = list(range(len(items)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[int, int] = {}
    for at, item in enumerate(items):
        for question in questions_of(item.work):
            a, b = find(first.setdefault(question, at)), find(at)
            parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for at in range(len(items)):
        groups.setdefault(find(at), []).append(at)
    return [
        _Unit(tuple(group), sum(_moved(items[at]) for at in group),
              any(isinstance(items[at].work, Whole) for at in group), _fewest(items[at] for at in group))
        for group in groups.values()
    ]  # fmt: skip


def _moved(item: WorkItem) -> int:
    """The bytes that an item moves in the process whose it is, and in no other."""
    return item.writes + (item.reads if sharers_of(item) == 1 else 0)


def _fewest(items: Iterable[WorkItem]) -> int:
    """The processes that share all of these items that are shared; 1 if none is."""
    return min((n for n in map(sharers_of, items) if n > 1), default=1)


def _spread(units: Iterable[_Unit], loads: list[int]) -> Iterator[tuple[_Unit, int]]:
    """Each unit with the process that has the least when its turn comes, the largest first."""
    ordered = sorted(units, key=lambda unit: (not unit.whole, -unit.nbytes))
    for unit, process in zip(ordered, balance([unit.nbytes for unit in ordered], loads), strict=True):
        loads[process] += unit.nbytes
        yield unit, process


def _fill(units: Sequence[_Unit], loads: list[int]) -> Iterator[tuple[_Unit, int]]:
    """Small units in order: each process takes consecutive ones until it has as much as all will have."""
    level, process = _level(loads, sum(unit.nbytes for unit in units)), 0
    for unit in units:
        while loads[process] >= level and process < len(loads) - 1:
            process += 1
        loads[process] += unit.nbytes
        yield unit, process


def _level(loads: Sequence[int], nbytes: int) -> int:
    """The load up to which `nbytes` fill the processes that have less."""
    level, filled = 0, 0
    for count, load in enumerate(sorted(loads), 1):
        if count > 1 and load * (count - 1) - filled >= nbytes:
            break
        filled += load
        level = -(-(filled + nbytes) // count)
    return level
