"""Where an expression turns floats into integers, and so drops what is behind the point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.expression.program import Computation, Literal, Node

_INTEGERS = ("int", "uint")


class CutOff(NamedTuple):
    """A node of floats that becomes integers of a dtype. `is_moved`: it only moves elements of operands."""

    number: int
    dtype: DType
    is_moved: bool


def find_truncations(program: Computation, stored: DType) -> Iterator[CutOff]:
    """The float nodes whose values need not be whole and that are cast to integers; `stored`: the result's dtype."""
    whole, moved = _fold(program)
    casts = [(source, node.aval.dtype) for node in program.nodes if node.op == "cast" for source in node.sources]
    for number, dtype in dict.fromkeys([*casts, (len(program.nodes) - 1, stored)]):
        if dtype.kind in _INTEGERS and program.nodes[number].aval.dtype.is_float and not whole[number]:
            yield CutOff(number, dtype, moved[number])


def _fold(program: Computation) -> tuple[list[bool], list[bool]]:
    """Of each node, whether its values are whole for certain, and whether it holds elements of operands alone."""
    whole, moved = list[bool](), list[bool]()
    for node in program.nodes:
        whole.append(_is_whole(node, whole))
        moved.append(node.is_leaf or (node.op in _MOVING and all(moved[n] for n in node.sources)))
    return whole, moved


def _is_whole(node: Node, whole: list[bool]) -> bool:
    if not node.aval.dtype.is_float or node.op in _ROUNDING:
        return True
    if node.op not in _KEEPING and node.op not in _MOVING:
        return False
    return all(float(x.value).is_integer() if isinstance(x, Literal) else whole[x.number] for x in node.operands)


_ROUNDING = frozenset({
    "round", "floor", "ceil", "sign", "floor_divide", "zeros_like", "ones_like", "zeros", "ones", "eye",
})  # fmt: skip
_MOVING = frozenset({
    "positive", "transpose", "reshape", "concat", "stack", "repeat", "flip", "item", "roll", "diag", "tril", "triu",
    "cast",
})  # fmt: skip
_KEEPING = frozenset({
    "add", "subtract", "multiply", "negative", "abs", "minimum", "maximum", "clip", "where", "remainder", "min", "max",
    "sum", "prod", "cumsum", "sort", "topk", "kth_largest", "take", "trace", "matmul", "dot", "outer", "kron", "einsum",
    "nan_to_num", "number",
})  # fmt: skip
