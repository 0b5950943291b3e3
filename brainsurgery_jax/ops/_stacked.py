"""Matrices that are stacked along leading axes, one by one: a scanned model has those of all layers in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated

from pydantic import Field, StrictBool

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.ops.shape import concatenate, section, with_shape
from brainsurgery_jax.protocol import TensorExpr, View

Stacked = Annotated[StrictBool, Field(description="whether tensors hold matrices along leading axes: [L, m, n]")]


def split_matrices(view: View, name: str, x: TensorExpr) -> list[TensorExpr]:
    """The matrices of `x` [..., m, n], in row-major order of the leading axes."""
    if len(x.aval.shape) < 3 or 0 in x.aval.shape:
        hint = "Leave `stacked` out for a matrix."
        found = f"'{name}' is {x.aval}: stacked matrices have at least three axes"
        raise Refusal("not-a-matrix", found, key="stacked", hint=hint)
    *lead, m, n = x.aval.shape
    flat = view.apply(with_shape, x, shape=(prod(lead), m, n))
    cut = (view.apply(section, flat, axis=0, start=at, stop=at + 1) for at in range(prod(lead)))
    return [view.apply(with_shape, one, shape=(m, n)) for one in cut]


def stack_matrices(view: View, like: TensorExpr, made: Sequence[TensorExpr]) -> TensorExpr:
    """Matrices of one shape, stacked along the leading axes of `like`."""
    shape = made[0].aval.shape
    rows = [view.apply(with_shape, one, shape=(1, *shape)) for one in made]
    joined = rows[0] if len(rows) == 1 else view.apply(concatenate, *rows, axis=0)
    return view.apply(with_shape, joined, shape=(*like.aval.shape[:-2], *shape))
