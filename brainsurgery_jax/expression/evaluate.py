"""The value of a program, on numpy arrays or traced by JAX: one operation after the other, nothing held longer than
its last use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from brainsurgery_jax._lazy import jnp, np
from brainsurgery_jax.dtypes import to_numpy
from brainsurgery_jax.expression.operations import OPERATIONS
from brainsurgery_jax.expression.program import Computation, Literal, Node
from brainsurgery_jax.expression.ranges import find_guarded
from brainsurgery_jax.expression.typing import freely
from brainsurgery_jax.numerics.math import kind, on_host, seal
from brainsurgery_jax.numerics.rounding import cast_to

Shape = tuple[int, ...]

UNCAST = {"cast": (0,), "where": (0,), "take": (1,), "quantile": (1,)}
"""Operands that are not cast to the dtype in which an operation computes."""


def evaluate(program: Computation, xs: Sequence[Any], shapes: Sequence[Shape] | None = None) -> tuple[Any, Any]:
    """The result, and whether no value stopped it. `shapes`: of each node, where operands are parts of tensors."""
    xp: Any = np if all(map(on_host, xs)) else jnp
    guarded, left = find_guarded(program), program.uses()
    accepted = xp.ones((), dtype=np.bool_)
    held: dict[int, Any] = {}
    with nullcontext() if xp is np else freely():
        for number, node in enumerate(program.nodes):
            if node.is_leaf:
                held[number] = xs[node.get("index")]
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


def _step(xp: Any, node: Node, shape: Shape, held: dict[int, Any], *, guarded: bool) -> tuple[Any, Any]:
    """The result of one node, and whether its operands can be computed on, if that is asked."""
    xs = [_operand(xp, node, at, held) for at in range(len(node.operands))]
    if node.op == "cast":
        made, fits = cast_to(xs[0], node.aval.dtype, node.get("overflow"))
        return xp.asarray(made), fits if guarded else None
    fits = _fits(xp, node, xs) if guarded else None
    operation = OPERATIONS[node.op]
    made = xp.asarray(operation.compute(xp, node, shape, xs))
    made = made.astype(to_numpy(node.aval.dtype), copy=False)
    return (seal(made) if operation.sealed and xp is not np else made), fits


def _operand(xp: Any, node: Node, at: int, held: dict[int, Any]) -> Any:
    """An operand in the dtype in which the node computes."""
    operand, cast = node.operands[at], at not in UNCAST.get(node.op, ())
    if isinstance(operand, Literal):
        return xp.asarray(operand.value, to_numpy(node.work)) if cast else xp.asarray(operand.value)
    x = held[operand.number]
    if not cast or x.dtype == to_numpy(node.work):
        return x
    if kind(x) == "complex" and not node.work.is_complex:
        return x.real.astype(to_numpy(node.work))
    wide = x.astype(to_numpy(node.work))
    # XLA takes the product with a boolean for a choice, in which NaN times zero is zero.
    return seal(wide) if kind(x) == "bool" and xp is not np else wide


def _fits(xp: Any, node: Node, xs: Sequence[Any]) -> Any:
    """Whether no value is one that the operation cannot take (`_ranges.find_guarded` says which operations ask)."""
    match node.op:
        case "floor_divide" | "remainder":
            return xp.all(xs[1] != 0)
        case "power":
            return xp.all(xs[1] >= 0)
    axis = node.get("axis")
    size = xs[0].size if axis is None else xs[0].shape[axis]
    return xp.all((xs[1] >= -size) & (xs[1] < size))
