"""The value of a program, on numpy arrays or traced by JAX: one operation after the other, nothing held longer than
its last use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import ModuleType

from brainsurgery_jax._lazy import Array, Flag, jnp, np
from brainsurgery_jax.dtypes import to_numpy
from brainsurgery_jax.expression.operations import OPERATIONS
from brainsurgery_jax.expression.program import Computation, Literal, Node
from brainsurgery_jax.expression.ranges import find_guarded
from brainsurgery_jax.expression.typing import freely
from brainsurgery_jax.numerics.math import kind, on_host, seal

Shape = tuple[int, ...]


def evaluate(program: Computation, xs: Sequence[Array], shapes: Sequence[Shape] | None = None) -> tuple[Array, Flag]:
    """The result, and whether no value stopped it. `shapes`: of each node, where operands are parts of tensors."""
    xp: ModuleType = np if all(map(on_host, xs)) else jnp
    guarded, left = find_guarded(program), program.uses()
    accepted = xp.ones((), dtype=np.bool_)
    held: dict[int, Array] = {}
    with nullcontext() if xp is np else freely():
        for number, node in enumerate(program.nodes):
            if node.is_leaf:
                held[number] = xs[node.params["index"]]
                continue
            shape = node.aval.shape if shapes is None else shapes[number]
            made, fits = _step(xp, node, shape, held, guarded=number in guarded)
            accepted = accepted if fits is None else accepted & fits
            held[number] = made
            for source in node.sources:
                left[source] -= 1
                if not left[source]:
                    held.pop(source, None)
    return held[len(program.nodes) - 1], accepted


def _step(
    xp: ModuleType, node: Node, shape: Shape, held: Mapping[int, Array], *, guarded: bool
) -> tuple[Array, Flag | None]:
    """The result of one node, and whether its operands can be computed on, if that is asked."""
    xs = [_operand(xp, node, at, held) for at in range(len(node.operands))]
    operation, fits = OPERATIONS[node.op], None
    if guarded and operation.guard is not None:
        found, fits = operation.guard(xp, node, shape, xs)
    else:
        found = operation.compute(xp, node, shape, xs)
    made = xp.asarray(found).astype(to_numpy(node.aval.dtype), copy=False)
    return (seal(made) if operation.sealed and xp is not np else made), fits


def _operand(xp: ModuleType, node: Node, at: int, held: Mapping[int, Array]) -> Array:
    """An operand in the dtype in which the node computes."""
    operand, cast = node.operands[at], at not in OPERATIONS[node.op].uncast
    if isinstance(operand, Literal):
        return xp.asarray(operand.value, to_numpy(node.work)) if cast else xp.asarray(operand.value)
    x = held[operand.number]
    if not cast or x.dtype == to_numpy(node.work):
        return x
    if kind(x) == "complex" and not node.work.is_complex:
        return xp.real(x).astype(to_numpy(node.work))
    wide = xp.asarray(x.astype(to_numpy(node.work)))
    # XLA takes the product with a boolean for a choice, in which NaN times zero is zero.
    return seal(wide) if kind(x) == "bool" and xp is not np else wide
