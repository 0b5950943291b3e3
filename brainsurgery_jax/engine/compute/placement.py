"""Calls on whole operands where the plan of the work has them computed (`plan/sites.py`): by one accelerator, by all of
them together, or on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine.compute.devices import NONE, Accelerators, compiling
from brainsurgery_jax.engine.compute.donation import consuming_attempt, gifts
from brainsurgery_jax.engine.compute.kernels import (
    Made,
    Outcome,
    Way,
    call_whole,
    checked,
    climb_alone,
    compiled,
    numbers_of,
    pure,
    ways,
)
from brainsurgery_jax.engine.compute.sharding import call_sharded
from brainsurgery_jax.engine.plan.footprint import on_device
from brainsurgery_jax.engine.plan.sites import site_of
from brainsurgery_jax.engine.plan.work import Site
from brainsurgery_jax.errors import Diagnostic
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.store.sizes import show_size


def call_part(e: Expr, operands: Sequence[Any], own: Accelerators) -> Any:
    """A part of the result of a call, of parts of its operands, computed where the call would be."""
    assert e.kernel is not None
    if not own.devices:
        with np.errstate(all="ignore"):
            return checked(e, pure(e.kernel, e.static)(operands, numbers_of(e)))
    need = 4 * sum(x.nbytes for x in operands)
    with own.one(need) as at, own.turn(at):
        arrays = [jax.device_put(x, own.devices[at]) for x in operands]
        return np.asarray(checked(e, compiled(e.kernel, e.static)(arrays, numbers_of(e))))


def call_placed(e: Expr, operands: Sequence[Any], own: Accelerators) -> Outcome:
    """A kernel on whole operands, computed where there is room for it; of accelerators only results on the host."""
    match site_of(e, len(own.devices), own.bytes_each):
        case Site.DEVICE:
            return _fetched(_on_device(e, operands, own))
        case Site.SHARDED if (made := call_sharded(e, operands, own)) is not None:
            return _fetched(made)
        case _:
            return _on_host(e, operands, own) if own.devices else call_whole(e, operands)


def _on_device(e: Expr, operands: Sequence[Any], own: Accelerators) -> Outcome:
    with own.one(on_device(e)) as at:
        arrays = [jax.device_put(x, own.devices[at]) for x in operands]
        with own.turn(at):
            return _climb_on_device(e, arrays)


def _climb_on_device(e: Expr, arrays: Sequence[Any]) -> Outcome:
    tried, numbers = ways(e), numbers_of(e)

    def attempt(way: Way, state: Any) -> Made:
        return consuming_attempt(way)(arrays, numbers, state, gifts(e, way, tried))

    return climb_alone(e, tried, attempt)


def _fetched(made: Outcome) -> Outcome:
    return made._replace(values=tuple(np.asarray(x) for x in made.values))


def _on_host(e: Expr, operands: Sequence[Any], own: Accelerators) -> Outcome:
    kernel = e.kernel
    assert kernel is not None
    of = " and ".join(dict.fromkeys(str(s.aval) for s in e.srcs))
    there = f"{len(own.devices)} accelerators have {show_size(own.bytes_each)} each"
    if len(own.devices) == 1:
        there = f"the accelerator has {show_size(own.bytes_each)}"
    told = f"{kernel.name} of {of} needs {show_size(on_device(e))}, {there}: computed on the host"
    with compiling(NONE):
        return call_whole(e, operands)._replace(note=Diagnostic("device-full", told, severity="note"))
