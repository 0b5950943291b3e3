"""Calls of one signature as one batch on an accelerator: vectorised, and spread over the local devices.

A matrix alone rarely fills an accelerator. The size of a batch follows from shapes alone, and a batch that is not full
is filled up, so that no result depends on what else is in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine.devices import accelerated, turn
from brainsurgery_jax.engine.evaluate import Evaluator
from brainsurgery_jax.engine.kernels import Outcome, Static, Way, attempt, numbers_of, outcome, precise, refused, ways
from brainsurgery_jax.engine.schedule import Task
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.graph.expr import Expr

if TYPE_CHECKING:
    from brainsurgery_jax.op import Kernel

MOST = 8
"""Calls in a batch per device, at most."""

FULL = 1 << 26
"""Elements of operands that keep a device busy: a batch holds no more calls than that takes."""


class Signature(NamedTuple):
    """What calls must have in common to be one batch."""

    kernel: Kernel
    static: Static
    avals: tuple[Any, ...]


def batches(tasks: Iterable[Task]) -> list[tuple[Task, ...]]:
    """Tasks that can go together, in the order of their first; a task with several whole calls goes alone."""
    groups: dict[Any, list[Task]] = {}
    for task in tasks:
        calls = _calls(task)
        groups.setdefault(_signature(calls[0]) if len(calls) == 1 else task.roots, []).append(task)
    out = []
    for group in groups.values():
        size = batch_size(group[0])
        out += [tuple(group[at : at + size]) for at in range(0, len(group), size)]
    return out


def _calls(task: Task) -> list[Expr]:
    return [call for made in task.compute for call in made]


def _signature(call: Expr) -> Signature:
    assert call.kernel is not None
    return Signature(call.kernel, call.static, tuple(s.aval for s in call.srcs))


def batch_size(task: Task) -> int:
    """Calls that one batch holds, a multiple of the number of devices; one for a task that goes alone."""
    calls = _calls(task)
    if len(calls) != 1:
        return 1
    elements = sum(s.aval.size for s in calls[0].srcs)
    return min(MOST, max(1, FULL // elements)) * jax.local_device_count()


def computed(batch: Sequence[Task]) -> Iterator[tuple[Task, Evaluator]]:
    """The tasks of a batch, each with an evaluator that has made its whole call, or will."""
    evaluators = [Evaluator() for _ in batch]
    if accelerated() and (size := batch_size(batch[0])) > 1:
        calls = [_calls(task)[0] for task in batch]
        operands = [[own.whole(s) for s in call.srcs] for own, call in zip(evaluators, calls, strict=True)]
        begun = perf_counter()
        outcomes = call_batch(calls, operands, size)
        seconds = (perf_counter() - begun) / len(batch)
        for own, call, made in zip(evaluators, calls, outcomes, strict=True):
            own.keep(call, made, seconds)
    yield from zip(batch, evaluators, strict=True)


def call_batch(calls: Sequence[Expr], operands: Sequence[Sequence[Any]], size: int) -> list[Outcome]:
    """The outcome of each call. Of a ladder, a member keeps the first result that was accepted of its own."""
    spare = size - len(calls)
    filled = [*operands, *[operands[0]] * spare]
    stacked = [_spread(np.stack([np.asarray(x) for x in column])) for column in zip(*filled, strict=True)]
    every = [numbers_of(call) for call in [*calls, *[calls[0]] * spare]]
    numbers = {name: _spread(np.stack([n[name] for n in every])) for name in every[0]}
    with turn:
        return _climbed(calls, stacked, numbers)


def _climbed(calls: Sequence[Expr], arrays: list[Any], numbers: Mapping[str, Any]) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    state: Any = None
    for way in ways(calls[0]):
        value, accepted, facts, state = vectorised(way)(arrays, numbers, state)
        for i in range(len(calls)):
            if i not in found and bool(accepted[i]):
                found[i] = outcome(way, *jax.tree.map(lambda x, i=i: np.asarray(x[i]), (value, facts)))
        if len(found) == len(calls):
            return [found[i] for i in range(len(calls))]
    raise PlanError([refused(call) for i, call in enumerate(calls) if i not in found])


@lru_cache(maxsize=4096)
def vectorised(way: Way) -> Callable[..., Any]:
    """A way to make a call, compiled over a leading batch axis: `f(arrays, numbers, state)`."""
    return jax.jit(over_batch(precise(attempt(way))))


def over_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function over a leading axis of all its arguments."""
    return jax.vmap(function)


def _spread(stacked: Any) -> Any:
    """A stacked array on the devices, each with its share of the batch."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("batch",))
    return jax.device_put(stacked, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
