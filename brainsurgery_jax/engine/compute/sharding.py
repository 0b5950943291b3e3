"""A call whose operands are too large for one device, sharded over all of them by XLA's partitioner.

No kernel has code for this. Not all can be partitioned: XLA may gather a matrix in one place. So the memory analysis of
the compiled program is checked before anything is read.

The devices may be those of several processes, each of which makes the same calls and reads what its own devices get.
Then every process has the results as a whole, and all decide alike which rung is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine.compute.devices import Accelerators
from brainsurgery_jax.engine.compute.donation import attempt_of_parts, donated, split
from brainsurgery_jax.engine.compute.kernels import single_numbers_of
from brainsurgery_jax.engine.compute.ladder import Taken, climb_once, rungs_of
from brainsurgery_jax.engine.compute.operands import Operand, send_sharded
from brainsurgery_jax.engine.plan.sites import LARGE
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.op import Outcome, Rung


class TooLarge(Exception):
    """The program needs more memory than a device has."""


def call_sharded(
    e: Expr, operands: Sequence[Operand], own: Accelerators, meet: Callable[[int], None] = lambda cut: None
) -> Taken | None:
    """Run a kernel on operands sharded along one axis, or the next one; None if no rung accepts its result.
    Raises TooLarge if neither fits. `meet(cut)` is called when the operands are read: before the devices compute."""
    mesh = jax.sharding.Mesh(np.array(own.devices), ("devices",))
    with own.all(own.bytes_each), own.turn():
        for cut in range(max(len(x.shape) for x in operands)):
            with suppress(TooLarge):
                return _climb_cut(e, operands, mesh, cut, own, partial(meet, cut))
    raise TooLarge


def _climb_cut(
    e: Expr,
    operands: Sequence[Operand],
    mesh: jax.sharding.Mesh,
    cut: int,
    own: Accelerators,
    meet: Callable[[], None],
) -> Taken | None:
    shardings = {x: _sharding(mesh, x.shape, cut) for x in operands}
    arrays: list[jax.Array | jax.ShapeDtypeStruct] = [_outline(x, shardings[x]) for x in operands]
    rungs, numbers = rungs_of(e, own.backend), _copies(single_numbers_of(e), mesh)

    def climb_rung(rung: Rung, state: object) -> Outcome:
        given = donated(e, rung, rungs)
        leaves, tree = jax.tree.flatten((*split(arrays, given), numbers, state))
        program = _program(rung, mesh, tuple(_outline(x, _sharding_of(x)) for x in leaves), tree)
        if _needs(program) > own.bytes_each:
            raise TooLarge
        if rung is rungs[0]:
            arrays[:] = send_sharded(operands, shardings)
            meet()
        return program(*split(arrays, given), numbers, state)

    return climb_once(rungs, climb_rung)


def _sharding(mesh: jax.sharding.Mesh, shape: Sequence[int], cut: int) -> jax.NamedSharding:
    """The sharding of an operand along its `cut`-th longest axis, among those that divide evenly over the devices. Over
    several processes the first comes first: each then reads rows, which lie together in a file."""
    fitting = [i for i, n in enumerate(shape) if n % mesh.size == 0]
    if not mesh.is_multi_process:
        fitting.sort(key=lambda i: -shape[i])
    axes = [None] * len(shape)
    if fitting:
        axes[fitting[cut % len(fitting)]] = mesh.axis_names[0]
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def _copies(numbers: Mapping[str, np.float32], mesh: jax.sharding.Mesh) -> Mapping[str, Any]:
    """Numbers for all devices. JAX sends them itself to those of one process."""
    if not mesh.is_multi_process:
        return numbers
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return {name: jax.make_array_from_callback((), whole, lambda _, n=n: n) for name, n in numbers.items()}


def _sharding_of(x: object) -> jax.sharding.Sharding | None:
    return x.sharding if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else None


def _outline(
    x: Operand | jax.Array | jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding | None
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@lru_cache(maxsize=256)
def _program(
    rung: Rung, mesh: jax.sharding.Mesh, leaves: tuple[jax.ShapeDtypeStruct, ...], tree: Hashable
) -> jax.stages.Compiled:
    """Compile a rung for operands of these shapes and shardings."""
    function, arguments = attempt_of_parts(rung), jax.tree.unflatten(tree, leaves)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    value = jax.eval_shape(function, *arguments)[0]
    cut = LARGE if not mesh.is_multi_process else np.inf
    results = jax.tree.map(lambda x: _sharding(mesh, x.shape, 0) if x.size >= cut else whole, value)
    chosen: Any = None  # by JAX
    told: Any = whole if mesh.is_multi_process else chosen
    places = Outcome(results, told, told, chosen)
    return jax.jit(function, donate_argnums=0, out_shardings=places).lower(*arguments).compile()


def _needs(program: jax.stages.Compiled) -> int:
    """Bytes that a compiled program needs on each device; 0 if JAX cannot say: then it is tried."""
    if (told := program.memory_analysis()) is None:
        return 0
    made = told.output_size_in_bytes - told.alias_size_in_bytes
    return told.argument_size_in_bytes + made + told.temp_size_in_bytes
