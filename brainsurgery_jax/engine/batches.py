"""Calls of one signature as one batch on accelerators: vectorised, and spread over the devices in use.

A matrix alone rarely fills an accelerator. How many calls each device gets follows from their shapes and dtypes and
from the device's memory, and a batch that is not full is filled up, so that no result depends on what else is in the
plan, or on the budget: compiled code for another number of calls may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine.devices import accelerated, in_use
from brainsurgery_jax.engine.evaluate import Evaluator
from brainsurgery_jax.engine.folds import Values
from brainsurgery_jax.engine.footprint import on_device
from brainsurgery_jax.engine.gifts import attempt_of_parts, consuming, gifts
from brainsurgery_jax.engine.kernels import Outcome, Static, Way, numbers_of, outcome, refused, ways
from brainsurgery_jax.engine.schedule import Task
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.graph.expr import Expr, is_fold

if TYPE_CHECKING:
    from brainsurgery_jax.op import Kernel

MOST = 8
"""Calls in a batch per device, at most."""

FULL = 4 << 30
"""Bytes, of operands and all that is made of them, that keep a device busy: its share of a batch takes no more. (On the
16 matrices of the benchmark, 4096 x 4096 in float32, that is no bound.)"""


class Signature(NamedTuple):
    """What calls must have in common to be one batch."""

    kernel: Kernel
    static: Static
    avals: tuple[Any, ...]


def batches(tasks: Iterable[Task], host_bytes: int) -> list[tuple[Task, ...]]:
    """Tasks that can go together, in the order of their first; a task with several whole calls goes alone.

    Fewer than a full batch do where the host has no more room: it is filled up on the devices.
    """
    groups: dict[Any, list[Task]] = {}
    for task in tasks:
        calls = _calls(task)
        groups.setdefault(_signature(calls[0]) if len(calls) == 1 else task.roots, []).append(task)
    return [batch for group in groups.values() for batch in _parted(group, host_bytes)]


def _parted(group: Sequence[Task], host_bytes: int) -> Iterator[tuple[Task, ...]]:
    size, batch = batch_size(group[0]), []
    for task in group:
        if batch and (len(batch) == size or batch_peak([*batch, task]) > host_bytes):
            yield tuple(batch)
            batch = []
        batch.append(task)
    yield tuple(batch)


def batch_peak(batch: Sequence[Task]) -> int:
    """Bytes of the host that a batch takes: its tasks as if computed there, and one device's share on its way."""
    peak = sum(task.peak for task in batch)
    if not accelerated() or (size := batch_size(batch[0])) == 1:
        return peak
    each = sum(s.aval.nbytes for s in _calls(batch[0])[0].srcs)
    return peak + size // len(in_use().devices) * each


def _calls(task: Task) -> list[Expr]:
    return [call for made in task.compute for call in made]


def _signature(call: Expr) -> Signature:
    assert call.kernel is not None
    return Signature(call.kernel, call.static, tuple(s.aval for s in call.srcs))


def batch_size(task: Task) -> int:
    """Calls that one batch holds, a multiple of the number of devices; one for a task that goes alone."""
    own, calls = in_use(), _calls(task)
    if len(calls) != 1 or is_fold(calls[0]) or (need := on_device(calls[0])) > own.bytes_each:
        return 1
    return max(1, min(MOST, min(FULL, own.bytes_each) // need)) * len(own.devices)


def computed(batch: Sequence[Task], known: Values) -> Iterator[tuple[Task, Evaluator]]:
    """The tasks of a batch, each with an evaluator that has made its whole call, or will."""
    evaluators = [Evaluator(known=known) for _ in batch]
    if accelerated() and (size := batch_size(batch[0])) > 1:
        calls = [_calls(task)[0] for task in batch]
        operands = [[np.asarray(own.whole(s)) for s in call.srcs] for own, call in zip(evaluators, calls, strict=True)]
        begun = perf_counter()
        outcomes = call_batch(calls, operands, size)
        seconds = (perf_counter() - begun) / len(batch)
        for own, call, made in zip(evaluators, calls, outcomes, strict=True):
            own.keep(call, made, seconds)
    yield from zip(batch, evaluators, strict=True)


def call_batch(calls: Sequence[Expr], operands: Sequence[Sequence[Any]], size: int) -> list[Outcome]:
    """The outcome of each call. Of a ladder, a member keeps the first result that was accepted of its own."""
    own, spare = in_use(), size - len(calls)
    need = on_device(calls[0]) * (size // len(own.devices))
    with own.all(need):
        filled = [*operands, *[operands[0]] * spare]
        arrays = [_spread(column) for column in zip(*filled, strict=True)]
        every = [numbers_of(call) for call in [*calls, *[calls[0]] * spare]]
        numbers = {name: _spread([n[name] for n in every]) for name in every[0]}
        with own.turn():
            return _climbed(calls, arrays, numbers)


def _climbed(calls: Sequence[Expr], arrays: Sequence[Any], numbers: Mapping[str, Any]) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    state: Any = None
    tried = ways(calls[0])
    for way in tried:
        given = gifts(calls[0], way, tried)
        value, accepted, facts, state = vectorised(way)(arrays, numbers, state, given)
        new = [i for i, good in enumerate(np.asarray(accepted)[: len(calls)]) if good and i not in found]
        if new:
            value, facts = jax.tree.map(np.asarray, (value, facts))
        for i in new:
            found[i] = outcome(way, *jax.tree.map(lambda x, i=i: x[i], (value, facts)))
        if len(found) == len(calls):
            return [found[i] for i in range(len(calls))]
    raise PlanError([refused(call) for i, call in enumerate(calls) if i not in found])


@lru_cache(maxsize=4096)
def vectorised(way: Way) -> Callable[..., Any]:
    """A way to make a call, compiled over a leading batch axis: `f(arrays, numbers, state, given)`."""
    return consuming(over_batch(attempt_of_parts(way)))


def over_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function over a leading axis of all its arguments."""
    return jax.vmap(function)


def _spread(members: Sequence[Any]) -> Any:
    """Arrays as one with a leading axis, each device with its share. The host stacks one share at a time."""
    mesh = jax.sharding.Mesh(np.array(in_use().devices), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))

    def share(at: tuple[slice, ...] | None) -> Any:
        return np.stack(members[at[0]] if at else members)

    return jax.make_array_from_callback((len(members), *members[0].shape), sharding, share)
