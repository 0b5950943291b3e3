"""Contractions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainsurgery_jax._lazy import Array, Num
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import Form, op
from brainsurgery_jax.ops._math import widen


def _contractible(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> None:
    a, b = avals
    if a.dtype != b.dtype:
        raise Refusal(
            "dtypes-differ", f"dtypes differ: {a} and {b}", hint="Nothing is promoted. Cast one of them first."
        )
    if a.dtype.kind == "bool":
        raise Refusal("dtype-unsupported", f"matmul cannot compute on booleans, got {a}", hint="Cast first.")
    if not a.shape or not b.shape:
        raise Refusal("shapes-differ", f"matmul needs at least one axis on both sides, got {a} and {b}")
    inner = b.shape[-2:][0]  # a vector's only axis
    if a.shape[-1] != inner:
        hint = "The last axis of `from_a` must equal the last but one of `from_b`; `permute` transposes."
        raise Refusal("shapes-differ", f"{a} and {b} cannot be multiplied: {a.shape[-1]} against {inner}", hint=hint)
    batch = zip(reversed(a.shape[:-2]), reversed(b.shape[:-2]), strict=False)
    if any(n != m and 1 not in (n, m) for n, m in batch):
        raise Refusal("shapes-differ", f"the leading axes of {a} and {b} do not broadcast")


def _blas(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> bool:
    return avals[0].dtype.kind in ("float", "complex")


@op(
    Form("matmul", ("from_a", "from_b"), ("to",), "new", slices=frozenset({"from_a", "from_b"})),
    check=_contractible,
    host=_blas,
)
def matmul(a: Num[Array, "..."], b: Num[Array, "..."]) -> Array:
    """Matrix product (batched over leading axes, vectors allowed), accumulated in at least float32, rounded once.

    Example: `matmul: {from_a: '(.*)\\.B', from_b: '\\1.A', to: '\\1.delta'}`
    """
    return a.__array_namespace__().matmul(widen(a), widen(b)).astype(a.dtype, copy=False)
