"""Where calls on whole operands are computed, and which of them form a batch.

Both depend only on shapes, dtypes, and the total memory of the devices: not on the memory that is free at the moment.
The site of a call does not depend on the rest of the plan either.

One matrix rarely fills an accelerator. The most calls for each device follow from their size. The last batch is as
large as what is left, rounded up to a multiple of the devices. Code that is compiled for another number of calls may
round differently, so what a batch lacks because of the budget is filled up with copies: the bits of a result depend on
how many calls of its kind the plan has, and on nothing else of it.

A call that no process of a run can hold is shared: several processes compute it together, each with its part of the
operands. Which calls these are follows from their shapes and the memory of a process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.engine.plan.footprint import on_device
from brainsurgery_jax.engine.plan.schedule import Root, Task, peak_of, taking_alone, with_holes
from brainsurgery_jax.engine.plan.work import Machine, Site
from brainsurgery_jax.graph.expr import Expr, runs_on_devices

if TYPE_CHECKING:
    from brainsurgery_jax.dtypes import Aval
    from brainsurgery_jax.op import Kernel, Static

MOST = 8
"""The most calls in a batch for each device."""

FULL = 4 << 30
"""Bytes of operands, results and workspace that keep a device busy: its share of a batch takes no more. (The 16
matrices of the benchmark, 4096 x 4096 in float32, stay below it.)"""


LARGE = 1 << 16
"""Elements of a tensor that is worth sharding; each device has a copy of smaller ones."""


class Signature(NamedTuple):
    """The properties that all calls of a batch share."""

    kernel: Kernel
    static: Static
    avals: tuple[Aval, ...]


class Batch(NamedTuple):
    """Tasks that are computed together, the number of calls with copies (1: no batch), the bytes that it takes on the
    host and on each device, and the calls that the first `sharers` processes share."""

    tasks: tuple[Task, ...]
    size: int
    host_bytes: int
    device_bytes: int
    shared: tuple[Expr, ...] = ()
    sharers: int = 1


def site_of(call: Expr, devices: int, bytes_each: int) -> Site:
    """The site of a call that belongs to no batch."""
    if not devices or not runs_on_devices(call):
        return Site.HOST
    if on_device(call) <= bytes_each:
        return Site.DEVICE
    return Site.SHARDED if devices > 1 else Site.HOST


def sites_of(batch: Batch, machine: Machine) -> tuple[Site, ...]:
    """The sites of the calls of a batch, each once."""
    if batch.size > 1:
        return (Site.BATCH,)
    calls = (call for task in batch.tasks for call in calls_of(task))
    return tuple(dict.fromkeys(Site.SHARED if call in batch.shared else _site_on(machine, call) for call in calls))


def _site_on(machine: Machine, call: Expr) -> Site:
    return site_of(call, machine.devices, machine.bytes_each)


def batches(tasks: Iterable[Task], machine: Machine) -> list[Batch]:
    """Group tasks into batches, in the order of their first tasks. A task with several calls on whole operands is a
    batch of one, and without accelerators every task is.

    If the host lacks memory for a whole batch, fewer tasks form one, and copies of the last take the other places.
    """
    groups: dict[Signature | tuple[Root, ...], list[Task]] = {}
    for task in tasks:
        alike = _signature(task) if machine.devices and not shared_calls(calls_of(task), machine)[0] else None
        groups.setdefault(task.roots if alike is None else alike, []).append(task)
    return [batch for group in groups.values() for batch in _cut(group, machine)]


def _cut(group: Sequence[Task], machine: Machine) -> Iterator[Batch]:
    most = most_calls(group[0], machine)
    for start in range(0, len(group), most):
        together = group[start : start + most]
        size = 1 if len(together) == 1 else -(-len(together) // machine.devices) * machine.devices
        tasks: list[Task] = []
        for task in together:
            if tasks and _peak([*tasks, task], size, machine) > machine.host_bytes:
                yield _batch(tasks, size, machine)
                tasks = []
            tasks.append(task)
        yield _batch(tasks, size, machine)


def _batch(tasks: Sequence[Task], size: int, machine: Machine) -> Batch:
    shared, sharers = shared_calls(calls_of(tasks[0]), machine) if size == 1 else ((), 1)
    batch = Batch(tuple(tasks), size, _peak(tasks, size, machine), _device_peak(tasks[0], size, machine))
    if shared and (each := _shared_peak(tasks[0], shared, sharers, machine)) < batch.host_bytes:
        return batch._replace(host_bytes=each, shared=shared, sharers=sharers)
    return batch


def shared_calls(calls: Sequence[Expr], machine: Machine) -> tuple[tuple[Expr, ...], int]:
    """Those of these calls that no process can compute alone, and the number of processes that share them: the most
    over which all their large operands divide evenly. None if fewer than two do."""
    found = tuple(call for call in calls if exceeds(call, machine))
    operands = [s.aval for call in found for s in call.srcs if s.aval.size >= LARGE]
    for sharers in range(machine.processes, 1, -1):
        places = sharers * max(1, machine.devices)
        if found and all(any(n % places == 0 for n in aval.shape) for aval in operands):
            return found, sharers
    return (), 1


def exceeds(call: Expr, machine: Machine) -> bool:
    """Whether a call that several processes could compute together needs more memory than one of them has."""
    return machine.processes > 1 and runs_on_devices(call) and with_holes(taking_alone(call)) > machine.host_bytes


def _shared_peak(task: Task, shared: Collection[Expr], sharers: int, machine: Machine) -> int:
    """Host bytes that each of the processes takes that share calls of a task. Without accelerators a process is the
    device, where no copy of an operand in float32 is made; else its host holds what is on the way to one of them. All
    have the results."""

    def taking(call: Expr) -> int:
        if call not in shared:
            return taking_alone(call)
        results = sum(a.nbytes for a in call.avals)
        if machine.devices:
            return 2 * results + sum(s.aval.nbytes for s in call.srcs) // (sharers * machine.devices)
        single = sum(s.aval.nbytes for s in call.srcs if s.aval.dtype.bits == 32)
        return 2 * results + (on_device(call) - single) // sharers

    return peak_of(task, taking)


def _peak(tasks: Sequence[Task], size: int, machine: Machine) -> int:
    """Host bytes that a batch takes: its tasks as if computed there, and the share of one device in transit."""
    peak = sum(task.peak for task in tasks)
    if size == 1:
        return peak
    each = sum(s.aval.nbytes for s in calls_of(tasks[0])[0].srcs)
    return peak + size // machine.devices * each


def _device_peak(task: Task, size: int, machine: Machine) -> int:
    """Bytes that a batch of tasks like this one takes on each device; a sharded call may take all of them."""
    if not machine.devices:
        return 0
    if size > 1:
        return size // machine.devices * on_device(calls_of(task)[0])
    there = [call for call in calls_of(task) if _site_on(machine, call) is not Site.HOST]
    return max((min(on_device(call), machine.bytes_each) for call in there), default=0)


def calls_of(task: Task) -> list[Expr]:
    """The calls on whole operands of a task."""
    return [call for made in task.compute for call in made]


def _signature(task: Task) -> Signature | None:
    calls = calls_of(task)
    if len(calls) != 1:
        return None
    (call,) = calls
    assert call.kernel is not None
    return Signature(call.kernel, call.static, tuple(s.aval for s in call.srcs))


def most_calls(task: Task, machine: Machine) -> int:
    """The most calls in a batch, a multiple of the number of devices; 1 for a task that is never batched."""
    calls = calls_of(task)
    if not machine.devices or len(calls) != 1 or not runs_on_devices(calls[0]):
        return 1
    if (need := on_device(calls[0])) > machine.bytes_each:
        return 1
    return max(1, min(MOST, min(FULL, machine.bytes_each) // need)) * machine.devices
