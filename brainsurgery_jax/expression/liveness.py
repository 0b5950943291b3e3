"""What the evaluation of a program holds at its worst moment, in bytes: a simulation of `_evaluate.evaluate` on numpy
arrays, from shapes and dtypes alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.expression.evaluate import UNCAST
from brainsurgery_jax.expression.operations import OPERATIONS, SLAB
from brainsurgery_jax.expression.program import At, Computation, Literal, Node
from brainsurgery_jax.expression.ranges import find_guarded

Shape = tuple[int, ...]

PACKED = 2 << 10
"""Bytes that BLAS packs operands into for each row of a product, and what it takes in any case."""

BLAS = 2 << 20

PLACE = 8
"""Bytes of a place in a table, as numpy wants it."""


def nbytes(shape: Shape, dtype: DType) -> int:
    """Bytes of a tensor, a packed one counted as bytes."""
    return prod(shape) * max(1, dtype.bits // 8)


def peak(program: Computation, shapes: Sequence[Shape] | None = None, *, fused: bool = False) -> int:
    """Bytes held at most, besides operands and the result. `shapes`: of each node, where operands are parts.

    `fused`: as a compiler does it, which makes what is elementwise as it is used, unless something needs it whole.
    """
    sizes = [node.aval.shape for node in program.nodes] if shapes is None else shapes
    made = [_own_bytes(program, sizes, number, fused=fused) for number in range(len(program.nodes))]
    freed, held, worst = _find_freed(program, sizes, made), 0, 0
    for number in range(len(program.nodes)):
        way = 0 if fused else _on_the_way(program, sizes, number)
        worst = max(worst, held + made[number] + way)
        held += made[number] - sum(freed[number])
    return max(0, worst - made[-1])


WHOLE = frozenset({"matmul", "dot", "median", "quantile", "concat", "stack", "take", "softmax"})
"""Operations whose operands and results compiled code makes as a whole."""


def _own_bytes(program: Computation, shapes: Sequence[Shape], number: int, *, fused: bool) -> int:
    """Bytes that a node's result takes of its own."""
    node = program.nodes[number]
    if node.is_leaf or _is_view(program, shapes, number):
        return 0
    used = any(number in other.sources and other.op in WHOLE for other in program.nodes) if fused else True
    return nbytes(shapes[number], node.aval.dtype) if used or node.op in WHOLE else 0


_ORDERING = frozenset({"concat", "stack", "repeat", "take", "matmul", "dot"})
"""Operations whose results lie in row-major order whatever their operands do."""


def _find_freed(program: Computation, shapes: Sequence[Shape], made: Sequence[int]) -> list[list[int]]:
    """For each node the bytes of those that nothing needs after it. What looks at the elements of another keeps it."""
    owner = list(range(len(program.nodes)))
    last = list(range(len(program.nodes)))
    for number, node in enumerate(program.nodes):
        if _is_view(program, shapes, number):
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


def _is_view(program: Computation, shapes: Sequence[Shape], number: int) -> bool:
    """Whether a node looks at the elements of its operand: no result of its own."""
    node = program.nodes[number]
    if node.is_leaf or not (node.sources and OPERATIONS[node.op].view):
        return False
    return node.op != "reshape" or _in_order(program, node.sources[0])


def _in_order(program: Computation, number: int) -> bool:
    """Whether the elements of a node lie in row-major order, as far as that is known."""
    node = program.nodes[number]
    if node.op in ("transpose", "flip", "item"):
        return False
    return node.op in _ORDERING or all(_in_order(program, n) for n in node.sources)


def _on_the_way(program: Computation, shapes: Sequence[Shape], number: int) -> int:
    """Bytes that a node takes besides its operands and its result: operands cast, and what its function makes."""
    node = program.nodes[number]
    if node.is_leaf:
        return 0
    xs = [(shapes[x.number], program.nodes[x.number].aval.dtype) for x in node.operands if isinstance(x, At)]
    cast = [at not in UNCAST.get(node.op, ()) for at in range(len(node.operands))]
    copies = sum(
        nbytes(shapes[x.number], node.work)
        for x, is_cast in zip(node.operands, cast, strict=True)
        if isinstance(x, At) and is_cast and program.nodes[x.number].aval.dtype != node.work
    )
    asked = 3 * max((prod(s) for s, _ in xs[1:]), default=0) if number in find_guarded(program) else 0
    return copies + max(asked, _passing(node, xs, shapes[number]))


def _passing(node: Node, xs: Sequence[tuple[Shape, DType]], shape: Shape) -> int:
    result = nbytes(shape, node.aval.dtype)
    match node.op:
        case "cast":
            return _casting(xs[0], node.aval.dtype) if xs else 0
        case "power":
            fast = isinstance(node.operands[1], Literal) and node.operands[1].value in (2, 0.5, -1)
            return result if fast else int(OPERATIONS["power"].passing * result)
        case "std" | "var" | "norm":
            return min(max(prod(s) for s, _ in xs), SLAB) * 24 if xs else 0
        case "take":
            indices, dtype = xs[1] if len(xs) > 1 else ((), node.aval.dtype)
            return prod(indices) * (PLACE + (2 * dtype.bits // 8 + 1 if dtype.kind == "int" else 0))
        case "matmul" | "dot":
            if len(shape) < 2 or len(xs) < 2:
                return 0
            return min(shape[-2] * PACKED + BLAS, sum(nbytes(s, node.work) for s, _ in xs))
    largest = max([result, *(prod(s) * max(1, node.work.bits // 8) for s, _ in xs)])
    return int(OPERATIONS[node.op].passing * largest)


def _casting(x: tuple[Shape, DType], target: DType) -> int:
    """As `_rounding` does it."""
    source, size = x[1], prod(x[0])
    wide = max(4, source.bits // 8)
    match source.kind, target.kind:
        case _ if source == target:
            return 0
        case "float", "int" | "uint":
            return size * (3 * wide + 4)
        case "float", "float" if target.bits == 8:
            return size * (8 + (4 if source.bits != 32 else 0))
        case "float", "float" if source.bits == 8:
            return size * (4 if target.bits != 32 else 0)
        case "float", "float" if source.bits != 32 and target.bits != 64:
            return size * (8 if target.bits == 16 and source.bits == 16 else 4)
        case "complex", _:
            return size * wide
        case _, "float" | "complex":
            return 0
    return 3 * size
