"""The value of a program, on numpy arrays or traced by JAX: one operation after the other, nothing held longer than
its last use."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from brainsurgery_jax._lazy import Array, Flag, jax, jnp, np
from brainsurgery_jax.dtypes import FLOAT32, FLOAT64, to_numpy
from brainsurgery_jax.expression.operations import OPERATIONS
from brainsurgery_jax.expression.program import Computation, Literal, Node
from brainsurgery_jax.expression.ranges import find_guarded
from brainsurgery_jax.expression.typing import freely
from brainsurgery_jax.numerics.math import kind, narrow_to, on_host, seal, to_float64

Shape = tuple[int, ...]


def evaluate(program: Computation, xs: Sequence[Array], shapes: Sequence[Shape] | None = None) -> tuple[Array, Flag]:
    """The result, and whether no value stopped it. `shapes`: of each node, where operands are parts of tensors."""
    guarded = find_guarded(program)
    if all(map(on_host, xs)):
        return _evaluate(np, program, xs, shapes, guarded)
    with freely():
        if not any(node.work in _FLOATS for node in program.nodes if not node.is_leaf):
            return _evaluate(jnp, program, xs, shapes, guarded)
        made, accepted = jax.lax.platform_dependent(
            *xs,
            cpu=lambda *xs: _evaluate(jnp, program, xs, shapes, guarded, subnormal=True),
            default=lambda *xs: _evaluate(jnp, program, xs, shapes, guarded),
        )
        # What no value can stop has to be known as such, without values.
        return made, accepted if guarded else jnp.ones((), np.bool_)


def _evaluate(
    xp: ModuleType,
    program: Computation,
    xs: Sequence[Array],
    shapes: Sequence[Shape] | None,
    guarded: Collection[int],
    *,
    subnormal: bool = False,
) -> tuple[Array, Flag]:
    """The same. `guarded`: the nodes whose operands are looked at; `subnormal`: traced for the CPU, where these numbers
    of float32 are kept by computing in float64."""
    left = program.uses()
    accepted = xp.ones((), dtype=np.bool_)
    held: dict[int, Array] = {}
    for number, node in enumerate(program.nodes):
        if node.is_leaf:
            held[number] = xs[node.params["index"]]
            continue
        shape = node.aval.shape if shapes is None else shapes[number]
        how = _Way(xp, number in guarded, subnormal and node.work in _FLOATS and node.op not in _BY_THEMSELVES)
        made, fits = _step(how, node, shape, held)
        accepted = accepted if fits is None else accepted & fits
        held[number] = made
        for source in node.sources:
            left[source] -= 1
            if not left[source]:
                held.pop(source, None)
    return held[len(program.nodes) - 1], accepted


_FLOATS = (FLOAT32, FLOAT64)
_BY_THEMSELVES = frozenset({"median", "quantile"})
"""Operations that keep subnormal numbers in float32, since they are rounded more than once."""


class _Way(NamedTuple):
    """How a node is computed: by numpy or JAX, with a look whether its operands can be computed on, in float64."""

    xp: ModuleType
    guarded: bool
    wide: bool


def _step(way: _Way, node: Node, shape: Shape, held: Mapping[int, Array]) -> tuple[Array, Flag | None]:
    """The result of one node, and whether its operands can be computed on, if that is asked."""
    xp, operation, fits, dtype = way.xp, OPERATIONS[node.op], None, to_numpy(node.aval.dtype)
    xs = [_operand(way, node, at, held) for at in range(len(node.operands))]
    if way.guarded and operation.guard is not None:
        found, fits = operation.guard(xp, node, shape, xs)
    else:
        found = operation.compute(xp, node, shape, xs)
    made = xp.asarray(found)
    made = narrow_to(made, dtype) if way.wide else made.astype(dtype, copy=False)
    return (seal(made) if operation.sealed and xp is not np else made), fits


def _operand(way: _Way, node: Node, at: int, held: Mapping[int, Array]) -> Array:
    """An operand in the dtype in which the node computes."""
    xp, operand, cast, work = way.xp, node.operands[at], at not in OPERATIONS[node.op].uncast, to_numpy(node.work)
    if isinstance(operand, Literal):
        x = xp.asarray(operand.value, work) if cast else xp.asarray(operand.value)
    else:
        x = held[operand.number]
    if way.wide and x.dtype == np.float32:
        return to_float64(x)
    if not cast or x.dtype == work:
        return x
    if kind(x) == "complex" and not node.work.is_complex:
        return xp.real(x).astype(work)
    wide = xp.asarray(x.astype(work))
    wide = to_float64(wide) if way.wide and wide.dtype == np.float32 else wide
    # XLA takes the product with a boolean for a choice, in which NaN times zero is zero.
    return seal(wide) if kind(x) == "bool" and xp is not np else wide
