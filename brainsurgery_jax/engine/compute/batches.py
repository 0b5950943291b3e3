"""Calls of one signature as one batch on accelerators: vectorised, and spread over the devices in use.

Which calls, and how many each device gets, is decided in `plan/sites.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from time import perf_counter

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine.compute.devices import SIMULATED, Accelerators
from brainsurgery_jax.engine.compute.donation import Donating, OfParts, attempt_of_parts, donated, donating
from brainsurgery_jax.engine.compute.evaluate import Evaluator, Meeting
from brainsurgery_jax.engine.compute.folds import Values
from brainsurgery_jax.engine.compute.kernels import single_numbers_of
from brainsurgery_jax.engine.compute.ladder import Taken, climb, rungs_of, take
from brainsurgery_jax.engine.compute.operands import Operand, send_batch
from brainsurgery_jax.engine.compute.placement import call_on_host
from brainsurgery_jax.engine.plan.compiling import Lengths
from brainsurgery_jax.engine.plan.footprint import on_device
from brainsurgery_jax.engine.plan.schedule import Task
from brainsurgery_jax.engine.plan.sites import calls_of
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.op import Outcome, Rung


def call_tasks(
    tasks: Sequence[Task],
    size: int,
    own: Accelerators,
    known: Values,
    lengths: Lengths,
    meeting: Meeting | None = None,
) -> Iterator[tuple[Task, Evaluator]]:
    """The tasks of a batch of `size` calls, each with an evaluator that has computed its call, or will."""
    evaluators = [Evaluator(own=own, known=known, lengths=lengths, meeting=meeting) for _ in tasks]
    if size > 1:
        calls = [calls_of(task)[0] for task in tasks]
        operands = [ev.operands(call) for ev, call in zip(evaluators, calls, strict=True)]
        begun = perf_counter()
        found = call_batch(calls, operands, size, own)
        seconds = (perf_counter() - begun) / len(tasks)
        for evaluator, call, own_operands, taken in zip(evaluators, calls, operands, found, strict=True):
            begun = perf_counter() - seconds
            taken = call_on_host(call, own_operands) if taken is None else taken
            evaluator.keep(call, taken, perf_counter() - begun)
    yield from zip(tasks, evaluators, strict=True)


def call_batch(
    calls: Sequence[Expr], operands: Sequence[Sequence[Operand]], size: int, own: Accelerators
) -> list[Taken | None]:
    """The outcome of each call, None if no rung accepts. With a ladder, each member keeps its first accepted result."""
    spare = size - len(calls)
    every = [*map(single_numbers_of, calls), *[single_numbers_of(calls[-1])] * spare]
    filled = [*operands, *[operands[-1]] * spare]
    mesh = jax.sharding.Mesh(np.array(own.devices), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    with own.all(on_device(calls[0]) * (size // len(own.devices))):
        arrays = [send_batch(column, sharding) for column in zip(*filled, strict=True)]
        numbers = {name: jax.device_put(np.stack([n[name] for n in every]), sharding) for name in every[0]}
        with own.turn():
            return _climb_together(calls, arrays, numbers, own.backend)


def _climb_together(
    calls: Sequence[Expr], arrays: Sequence[jax.Array], numbers: Mapping[str, jax.Array], backend: str
) -> list[Taken | None]:
    found: dict[int, Taken] = {}
    rungs = rungs_of(calls[0], backend)

    def climb_rung(rung: Rung, state: object) -> Outcome:
        return vectorise(rung, backend)(arrays, numbers, state, donated(calls[0], rung, rungs))

    def accept(rung: Rung, outcome: Outcome) -> bool | None:
        new = [i for i, good in enumerate(np.asarray(outcome.accepted)[: len(calls)]) if good and i not in found]
        fetched = jax.tree.map(np.asarray, outcome._replace(state=None)) if new else None
        for i in new:
            found[i] = take(rung, jax.tree.map(lambda x, i=i: x[i], fetched))
        return True if len(found) == len(calls) else None

    climb(rungs, climb_rung, accept)
    return [found.get(i) for i in range(len(calls))]


@lru_cache(maxsize=4096)
def vectorise(rung: Rung, backend: str) -> Donating:
    """A rung, compiled over a leading batch axis: `f(arrays, numbers, state, donated) -> Outcome`."""
    over_batch = _one_by_one if backend == SIMULATED else jax.vmap
    return donating(over_batch(attempt_of_parts(rung)))


def _one_by_one(function: OfParts) -> OfParts:
    """A function over a leading axis of all its arguments. On the CPU of jaxlib 0.10.2, two batched LAPACK calls in one
    program may wait for each other for ever."""
    return lambda *arguments: jax.lax.map(lambda members: function(*members), arguments)
