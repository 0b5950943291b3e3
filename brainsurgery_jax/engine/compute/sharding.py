"""A call whose operands are too large for one device, cut over all of them: XLA's partitioner derives what each does.

No kernel has code for this. Not all can be partitioned: a full SVD needs its matrix in one place, and XLA then brings
it there. So the compiled program is asked what it needs on a device, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from brainsurgery_jax._lazy import jax, np
from brainsurgery_jax.engine.compute.devices import Accelerators
from brainsurgery_jax.engine.compute.donation import apart, attempt_of_parts, gifts
from brainsurgery_jax.engine.compute.kernels import Made, Outcome, Way, climb_alone, numbers_of, ways
from brainsurgery_jax.graph.expr import Expr

LARGE = 1 << 16
"""Elements of a result that is worth cutting; each device has a copy of smaller ones."""


def call_sharded(e: Expr, operands: Sequence[Any], own: Accelerators) -> Outcome | None:
    """A kernel on operands that are cut along their longest axis, or the next one; None if that does not fit either."""
    mesh = jax.sharding.Mesh(np.array(own.devices), ("devices",))
    with own.all(own.bytes_each), own.turn():
        cuts = range(max(x.ndim for x in operands))
        return next(
            (made for cut in cuts if (made := _climb_cut(e, operands, mesh, cut, own.bytes_each)) is not None), None
        )


class _TooLarge(Exception):
    """A program, cut like this, needs more memory of a device than it has."""


def _climb_cut(e: Expr, operands: Sequence[Any], mesh: Any, cut: int, bytes_each: int) -> Outcome | None:
    shardings = [_sharding(mesh, x.shape, cut) for x in operands]
    arrays: list[Any] = [_outline(x, s) for x, s in zip(operands, shardings, strict=True)]
    tried, numbers = ways(e), numbers_of(e)

    def attempt(way: Way, state: Any) -> Made:
        given = gifts(e, way, tried)
        leaves, tree = jax.tree.flatten((*apart(arrays, given), numbers, state))
        program = _program(way, mesh, tuple(_outline(x, _placed(x)) for x in leaves), tree)
        if _needs(program) > bytes_each:
            raise _TooLarge
        if way is tried[0]:
            arrays[:] = [jax.device_put(x, s) for x, s in zip(operands, shardings, strict=True)]
        return program(*apart(arrays, given), numbers, state)

    try:
        return climb_alone(e, tried, attempt)
    except _TooLarge:
        return None


def _sharding(mesh: Any, shape: Sequence[int], cut: int) -> Any:
    """The axis to cut, `cut` places after the longest, of those that the devices can share evenly."""
    fitting = sorted((i for i, n in enumerate(shape) if n % mesh.size == 0), key=lambda i: -shape[i])
    axes = [None] * len(shape)
    if fitting:
        axes[fitting[cut % len(fitting)]] = mesh.axis_names[0]
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def _placed(x: Any) -> Any:
    return x.sharding if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else None


def _outline(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@lru_cache(maxsize=256)
def _program(way: Way, mesh: Any, leaves: tuple[Any, ...], tree: Any) -> Any:
    """A way to make a call, compiled for operands of these shapes, cut as they are."""
    function, arguments = attempt_of_parts(way), jax.tree.unflatten(tree, leaves)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    value = jax.eval_shape(function, *arguments)[0]
    results = jax.tree.map(lambda x: _sharding(mesh, x.shape, 0) if x.size >= LARGE else whole, value)
    chosen: Any = None  # by JAX
    places = Made(results, chosen, chosen, chosen)
    return jax.jit(function, donate_argnums=0, out_shardings=places).lower(*arguments).compile()


def _needs(program: Any) -> int:
    """Bytes that a compiled program takes of each device; 0 where JAX cannot tell: then it is tried."""
    if (told := program.memory_analysis()) is None:
        return 0
    made = told.output_size_in_bytes - told.alias_size_in_bytes
    return told.argument_size_in_bytes + made + told.temp_size_in_bytes
