"""Arithmetic that several families of ops share."""

from __future__ import annotations

from typing import Any

from brainsurgery_jax._lazy import jnp
from brainsurgery_jax.dtypes import FLOAT32, Aval, DType
from brainsurgery_jax.errors import Refusal


def wide(dtype: DType) -> DType:
    """The dtype to compute in: low-precision floats widen to float32, so that a result is rounded once."""
    return FLOAT32 if dtype.kind == "float" and dtype.bits < 32 else dtype


def widen(x: Any) -> Any:
    """`x` in float32 if it is a float of fewer bits, else `x`."""
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4 else x


def matrix(avals: tuple[Aval, ...], what: str) -> None:
    """Refuse anything but a floating or complex matrix with elements."""
    (x,) = avals
    if len(x.shape) != 2 or 0 in x.shape:
        raise Refusal("not-a-matrix", f"{what} needs matrices with elements, got {x}", hint="Narrow the pattern.")
    if x.dtype.kind not in ("float", "complex"):
        hint = "Cast it first: `cast_: {target: ..., to: float32}`."
        raise Refusal("dtype-unsupported", f"{what} needs floating-point matrices, got {x}", hint=hint)
