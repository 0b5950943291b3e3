"""Kernels on rows that are held whole: a tensor goes by in as many rows at a time as take little memory."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import ParamSpec, TypeVar

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.index.parts import AxisCut, Cuts
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.merging.tensors import Params, anywhere
from brainsurgery_jax.op import Avals, kernel

P = ParamSpec("P")
R = TypeVar("R")

PART = 4 << 20
"""Bytes of the operands of a part, if a row is no longer."""

WIDENED = 56
"""Bytes that a part takes for each element of an operand, in double precision and with results on the way."""


def axis_cut(avals: Avals, params: Params) -> int:
    """The axis along which rows follow each other; 1 if vectors along axis 0 are meant."""
    return 1 if params.get("upright") else 0


def _cuts(part: int, avals: Avals, params: Params) -> Cuts:
    shape, axis = avals[0].shape, axis_cut(avals, params)
    if len(shape) < 2 or shape[axis] < 2:
        return ()
    row = prod(shape) // shape[axis] * 4 * len(avals)
    step = min(shape[axis], max(1, part // max(1, row)))
    return (AxisCut(axis, shape[axis], step, (axis,) * len(avals)),)


def _space(avals: Avals, params: Params) -> int:
    return WIDENED * sum(a.size for a in avals)


def by_rows(
    name: str, result: Callable[[Avals, Params], Aval], part: int = PART
) -> Callable[[Callable[P, R]], Kernel[P, R]]:
    """Make a kernel of a function that treats each row by itself: the entries along axis 0, or, with the parameter
    `upright`, the columns. `result(avals, static)`: what it makes, with as many rows; `part`: as PART."""
    made = lambda avals, params: (result(avals, params),)  # noqa: E731
    return kernel(
        name, result=made, host=anywhere, workspace=_space, parts=lambda avals, params: _cuts(part, avals, params)
    )


def in_work(avals: Avals, params: Params) -> Aval:
    """A result of the shape and dtype of the operands."""
    return avals[0]


def in_result(avals: Avals, params: Params) -> Aval:
    """A result of the shape of the operands, in the dtype of the merged tensor."""
    return Aval(avals[0].shape, params["dtype"])
