"""Calls of one signature as one batch on accelerators: vectorised, and spread over the devices in use.

Which calls, and how many each device gets, is decided in `plan/sites.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine.compute.devices import Accelerators
from brainsurgery_jax.engine.compute.donation import attempt_of_parts, consuming, gifts
from brainsurgery_jax.engine.compute.evaluate import Evaluator
from brainsurgery_jax.engine.compute.folds import Values
from brainsurgery_jax.engine.compute.kernels import Made, Outcome, Way, climb, numbers_of, outcome, refused, ways
from brainsurgery_jax.engine.plan.footprint import on_device
from brainsurgery_jax.engine.plan.schedule import Task
from brainsurgery_jax.engine.plan.sites import calls_of
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.graph.expr import Expr


def call_tasks(tasks: Sequence[Task], size: int, own: Accelerators, known: Values) -> Iterator[tuple[Task, Evaluator]]:
    """The tasks of a batch of `size` calls, each with an evaluator that has made its whole call, or will."""
    evaluators = [Evaluator(own=own, known=known) for _ in tasks]
    if size > 1:
        calls = [calls_of(task)[0] for task in tasks]
        operands = [[np.asarray(ev.whole(s)) for s in call.srcs] for ev, call in zip(evaluators, calls, strict=True)]
        begun = perf_counter()
        outcomes = call_batch(calls, operands, size, own)
        seconds = (perf_counter() - begun) / len(tasks)
        for evaluator, call, made in zip(evaluators, calls, outcomes, strict=True):
            evaluator.keep(call, made, seconds)
    yield from zip(tasks, evaluators, strict=True)


def call_batch(calls: Sequence[Expr], operands: Sequence[Sequence[Any]], size: int, own: Accelerators) -> list[Outcome]:
    """The outcome of each call. Of a ladder, a member keeps the first result that was accepted of its own."""
    spare = size - len(calls)
    need = on_device(calls[0]) * (size // len(own.devices))
    with own.all(need):
        filled = [*operands, *[operands[0]] * spare]
        arrays = [_spread(column, own) for column in zip(*filled, strict=True)]
        every = [numbers_of(call) for call in [*calls, *[calls[0]] * spare]]
        numbers = {name: _spread([n[name] for n in every], own) for name in every[0]}
        with own.turn():
            return _climb_together(calls, arrays, numbers, own.backend)


def _climb_together(
    calls: Sequence[Expr], arrays: Sequence[Any], numbers: Mapping[str, Any], backend: str
) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    tried = ways(calls[0])

    def attempt(way: Way, state: Any) -> Made:
        return vectorised(way, backend)(arrays, numbers, state, gifts(calls[0], way, tried))

    def accept(way: Way, made: Made) -> list[Outcome] | None:
        new = [i for i, good in enumerate(np.asarray(made.accepted)[: len(calls)]) if good and i not in found]
        fetched = jax.tree.map(np.asarray, (made.value, made.facts)) if new else None
        for i in new:
            found[i] = outcome(way, *jax.tree.map(lambda x, i=i: x[i], fetched))
        return [found[i] for i in range(len(calls))] if len(found) == len(calls) else None

    outcomes = climb(tried, attempt, accept)
    if outcomes is None:
        raise PlanError([refused(call) for i, call in enumerate(calls) if i not in found])
    return outcomes


@lru_cache(maxsize=4096)
def vectorised(way: Way, backend: str) -> Callable[..., Any]:
    """A way to make a call, compiled over a leading batch axis: `f(arrays, numbers, state, given)`."""
    over_batch = _one_by_one if backend == "cpu" else jax.vmap
    return consuming(over_batch(attempt_of_parts(way)))


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function over a leading axis of all its arguments. On the CPU of jaxlib 0.10.2, two batched LAPACK calls in one
    program may wait for each other for ever."""
    return lambda *arguments: jax.lax.map(lambda members: function(*members), arguments)


def _spread(members: Sequence[Any], own: Accelerators) -> Any:
    """Arrays as one with a leading axis, each device with its share. The host stacks one share at a time."""
    mesh = jax.sharding.Mesh(np.array(own.devices), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))

    def share(at: tuple[slice, ...] | None) -> Any:
        return np.stack(members[at[0]] if at else members)

    return jax.make_array_from_callback((len(members), *members[0].shape), sharding, share)
