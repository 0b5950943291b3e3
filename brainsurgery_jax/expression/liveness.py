"""What the evaluation of a program holds at its worst moment, in bytes: a simulation of `evaluate.evaluate` on numpy
arrays, from shapes and dtypes alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from brainsurgery_jax.expression.on_the_way import nbytes
from brainsurgery_jax.expression.operations import OPERATIONS
from brainsurgery_jax.expression.program import At, Computation
from brainsurgery_jax.expression.ranges import find_guarded

Shape = tuple[int, ...]


def peak(program: Computation, shapes: Sequence[Shape] | None = None) -> int:
    """Bytes held at most, besides operands and the result. `shapes`: of each node, where operands are parts."""
    sizes = [node.aval.shape for node in program.nodes] if shapes is None else shapes
    made = [_own_bytes(program, sizes, number) for number in range(len(program.nodes))]
    freed, held, worst = _find_freed(program, sizes, made), 0, 0
    for number in range(len(program.nodes)):
        worst = max(worst, held + made[number] + _on_the_way(program, sizes, number))
        held += made[number] - sum(freed[number])
    return max(0, worst - made[-1])


def _own_bytes(program: Computation, shapes: Sequence[Shape], number: int) -> int:
    """Bytes that a node's result takes of its own."""
    node = program.nodes[number]
    if node.is_leaf or _is_view(program, number):
        return 0
    return nbytes(shapes[number], node.aval.dtype)


def _find_freed(program: Computation, shapes: Sequence[Shape], made: Sequence[int]) -> list[list[int]]:
    """For each node the bytes of those that nothing needs after it. What looks at the elements of another keeps it."""
    owner = list(range(len(program.nodes)))
    last = list(range(len(program.nodes)))
    for number, node in enumerate(program.nodes):
        if _is_view(program, number):
            owner[number] = owner[node.sources[0]]
        for source in node.sources:
            last[source] = number
    for number in range(len(owner)):
        last[owner[number]] = max(last[owner[number]], last[number])
    gone: list[list[int]] = [[] for _ in owner]
    for number, node in enumerate(program.nodes):
        if owner[number] == number and not node.is_leaf and last[number] < len(owner) - 1:
            gone[max(last[number], number)].append(made[number])
    return gone


def _is_view(program: Computation, number: int) -> bool:
    """Whether a node looks at the elements of its operand: no result of its own."""
    node = program.nodes[number]
    if node.is_leaf or not (node.sources and OPERATIONS[node.op].view):
        return False
    return not OPERATIONS[node.op].needs_order or _in_order(program, node.sources[0])


def _in_order(program: Computation, number: int) -> bool:
    """Whether the elements of a node lie in row-major order, as far as that is known."""
    node = program.nodes[number]
    if node.is_leaf:
        return True
    operation = OPERATIONS[node.op]
    if operation.view and not operation.needs_order:
        return False
    return operation.orders or all(_in_order(program, n) for n in node.sources)


def _on_the_way(program: Computation, shapes: Sequence[Shape], number: int) -> int:
    """Bytes that a node takes besides its operands and its result: operands cast, and what its function makes."""
    node = program.nodes[number]
    if node.is_leaf:
        return 0
    xs = [(shapes[x.number], program.nodes[x.number].aval.dtype) for x in node.operands if isinstance(x, At)]
    cast = [at not in OPERATIONS[node.op].uncast for at in range(len(node.operands))]
    copies = sum(
        nbytes(shapes[x.number], node.work)
        for x, is_cast in zip(node.operands, cast, strict=True)
        if isinstance(x, At) and is_cast and program.nodes[x.number].aval.dtype != node.work
    )
    asked = 3 * max((prod(s) for s, _ in xs[1:]), default=0) if number in find_guarded(program) else 0
    return copies + max(asked, OPERATIONS[node.op].on_the_way(node, xs, shapes[number]))
