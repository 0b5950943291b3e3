"""Run calls on whole operands at the site that the plan chose (`plan/sites.py`): one accelerator, all of them together,
or the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine.compute.devices import NONE, Accelerators, turn
from brainsurgery_jax.engine.compute.donation import compile_rung, donated
from brainsurgery_jax.engine.compute.kernels import accept, numbers_of, pure, single_numbers_of
from brainsurgery_jax.engine.compute.ladder import Taken, attempt, climb_alone, climb_once, rungs_of
from brainsurgery_jax.engine.compute.operands import Operand, read_in_turn, send
from brainsurgery_jax.engine.compute.sharding import TooLarge, call_sharded
from brainsurgery_jax.engine.events import Noted
from brainsurgery_jax.engine.plan.footprint import on_device
from brainsurgery_jax.engine.plan.sites import site_of
from brainsurgery_jax.engine.plan.work import Site
from brainsurgery_jax.errors import Diagnostic
from brainsurgery_jax.graph.expr import Expr, runs_on_devices, runs_on_numpy
from brainsurgery_jax.op import Outcome, Rung
from brainsurgery_jax.store.sizes import show_size


def call_part(e: Expr, operands: Sequence[np.ndarray]) -> np.ndarray:
    """Compute a part of the result of a call from parts of its operands."""
    assert e.kernel is not None
    with np.errstate(all="ignore"):
        return accept(e, pure(e.kernel, e.static)(operands, numbers_of(e)))


def call_placed(e: Expr, operands: Sequence[Operand], own: Accelerators, tell: Callable[[Noted], None]) -> Taken:
    """Run a kernel on whole operands where there is room for it, and on the host if accelerators accept no result of
    theirs. The results are on the host; `tell` is called if none has room."""
    taken = None
    try:
        match site_of(e, len(own.devices), own.bytes_each):
            case Site.DEVICE:
                taken = _call_on_device(e, operands, own)
            case Site.SHARDED:
                taken = call_sharded(e, operands, own)
            case _ if own.devices and runs_on_devices(e):
                raise TooLarge
    except TooLarge:
        tell(Noted(_too_large(e, own)))
    return call_on_host(e, operands) if taken is None else fetch(taken)


def call_on_host(e: Expr, operands: Sequence[Operand]) -> Taken:
    """Run it in numpy where that is as fast, else compiled for the CPU."""
    arrays, numbers, rungs = list(read_in_turn(operands)), numbers_of(e), rungs_of(e, NONE.backend)
    if runs_on_numpy(e):
        with np.errstate(all="ignore"):
            return climb_alone(e, rungs, lambda rung, state: attempt(rung)(arrays, numbers, state))
    with turn:
        return climb_alone(e, rungs, lambda rung, state: compile_rung(rung)(arrays, numbers, state))


def _call_on_device(e: Expr, operands: Sequence[Operand], own: Accelerators) -> Taken | None:
    numbers, rungs = single_numbers_of(e), rungs_of(e, own.backend)

    def climb_rung(rung: Rung, state: object) -> Outcome:
        return compile_rung(rung)(arrays, numbers, state, donated(e, rung, rungs))

    with own.one(on_device(e)) as at:
        arrays = send(operands, own.devices[at])
        with own.turn(at):
            return climb_once(rungs, climb_rung)


def fetch(taken: Taken) -> Taken:
    """Fetch the results of an outcome to the host."""
    rung, outcome = taken
    return rung, outcome._replace(value=jax.tree.map(np.asarray, outcome.value))


def _too_large(e: Expr, own: Accelerators) -> Diagnostic:
    assert e.kernel is not None
    of = " and ".join(dict.fromkeys(str(s.aval) for s in e.srcs))
    there = f"{len(own.devices)} accelerators have {show_size(own.bytes_each)} each"
    if len(own.devices) == 1:
        there = f"the accelerator has {show_size(own.bytes_each)}"
    found = f"{e.kernel.name} of {of} needs {show_size(on_device(e))}, {there}: computed on the host"
    return Diagnostic("device-full", found, severity="note")
