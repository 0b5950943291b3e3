"""The float dtypes of an expression: the one that it computes in, and those that its tensors are stored in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from brainsurgery_jax.dtypes import FLOAT32, DType, common_dtype
from brainsurgery_jax.expression.program import Node, below


def work_dtype(dtypes: Sequence[DType]) -> DType:
    """The dtype in which floats are computed: float64 if one of them is, else float32."""
    return next((d for d in dtypes if d.is_float and d.bits == 64), FLOAT32)


def stored_dtype(nodes: Sequence[Node], root: int, work: DType) -> DType:
    """The dtype that the value of a node would have if tensors were computed with in their own: float16 for `x * 2` of
    a float16 tensor, although the expression computes in `work`. A cast in it decides for what is made of its result.
    """
    known: dict[int, DType] = {}
    for number in below(nodes, [root]):
        node = nodes[number]
        floats = [known[n] for n in node.sources if known[n].is_float]
        is_asked = node.op == "cast" and not (node.aval.dtype == work and any(nodes[n].is_leaf for n in node.sources))
        keeps = node.aval.dtype.is_float and floats and not is_asked
        known[number] = reduce(_promote, floats) if keeps else node.aval.dtype
    return known[root]


def _promote(a: DType, b: DType) -> DType:
    return common_dtype(a, b) or FLOAT32
