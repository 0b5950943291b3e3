"""Bytes that the operations of an expression take besides their operands and results, as numpy computes them.

A rule gets a node, the shapes and dtypes of those operands that are tensors, and the shape of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.expression.program import Literal, Node
from brainsurgery_jax.numerics.squares import PIECE, goes_by_pieces

Shape = tuple[int, ...]
Operands = Sequence[tuple[Shape, DType]]
Rule = Callable[[Node, Operands, Shape], int]

SLAB = 1 << 20
"""Elements of which squares are summed at a time."""

PACKED = 2 << 10
"""Bytes that BLAS packs operands into for each row of a product, and what it takes in any case."""

BLAS = 2 << 20

PLACE = 8
"""Bytes of a place in a table, as numpy wants it."""


def nbytes(shape: Shape, dtype: DType) -> int:
    """Bytes of a tensor, a packed one counted as bytes."""
    return prod(shape) * max(1, dtype.bits // 8)


def of_largest(times: float) -> Rule:
    """So many bytes for each byte of the largest operand or the result."""

    def rule(node: Node, xs: Operands, shape: Shape) -> int:
        largest = max([nbytes(shape, node.aval.dtype), *(nbytes(s, node.work) for s, _ in xs)])
        return int(times * largest)

    return rule


nothing = of_largest(0)


def power(node: Node, xs: Operands, shape: Shape) -> int:
    """Little for squares, roots and reciprocals."""
    result, exponent = nbytes(shape, node.aval.dtype), node.operands[1]
    fast = isinstance(exponent, Literal) and exponent.value in (2, 0.5, -1)
    return result if fast else 8 * result


def squares(node: Node, xs: Operands, shape: Shape) -> int:
    """A slab, three times in double precision."""
    return min(max(prod(s) for s, _ in xs), SLAB) * 24 if xs else 0


def norm(node: Node, xs: Operands, shape: Shape) -> int:
    """A piece in double precision, where rows or all are summed up; else as for a spread."""
    if node.work.is_complex or not xs:
        return squares(node, xs, shape)
    whole = xs[0][0]
    in_pieces = goes_by_pieces(len(whole), node.params["axes"])
    return min(prod(whole), PIECE) * 16 if in_pieces else squares(node, xs, shape)


def take(node: Node, xs: Operands, shape: Shape) -> int:
    """The indices as places, and what makes negative ones positive."""
    indices, dtype = xs[1] if len(xs) > 1 else ((), node.aval.dtype)
    return prod(indices) * (PLACE + (2 * dtype.bits // 8 + 1 if dtype.is_signed else 0))


def product(node: Node, xs: Operands, shape: Shape) -> int:
    """What BLAS packs."""
    if len(shape) < 2 or len(xs) < 2:
        return 0
    return min(shape[-2] * PACKED + BLAS, sum(nbytes(s, node.work) for s, _ in xs))


def contraction(node: Node, xs: Operands, shape: Shape) -> int:
    """What BLAS packs, operands with axes in an order that it takes, and the result before its axes are ordered."""
    return BLAS + sum(nbytes(s, node.work) for s, _ in xs) + nbytes(shape, node.aval.dtype)


def cast(node: Node, xs: Operands, shape: Shape) -> int:
    """As `numerics.rounding` casts."""
    return _casting(xs[0], node.aval.dtype) if xs else 0


def _casting(x: tuple[Shape, DType], target: DType) -> int:
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
