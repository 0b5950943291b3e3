"""Comparing values: what asserts and `diff` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, StrictFloat, StrictInt

from brainsurgery_jax._lazy import np
from brainsurgery_jax.protocol import Expr, Known, Pending, Reduction, Verdict

Eps = Annotated[StrictFloat | StrictInt, Field(ge=0, description="absolute tolerance")]


def quiet(block: Callable[..., Any]) -> Callable[..., Any]:
    """`block` on numpy arrays without warnings of invalid values: here NaN and infinity are values like others."""

    def silenced(*xs: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return block(*xs)

    return silenced


def both(holds: Callable[..., Any]) -> Reduction:
    """Whether `holds` is true of all blocks: numpy arrays, under a trace one whole JAX array (so methods, no `np`)."""
    return Reduction(quiet(lambda *xs: bool(holds(*xs))), lambda a, b: a and b, bool, True, traced=holds)


def within(eps: float | None) -> Callable[..., Any]:
    if eps is None:
        return lambda x: (x == 0).all()
    return lambda x: (abs(as64(x)) <= eps).all()


def as64(x: Any) -> Any:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _agree(eps: float | None) -> Callable[..., Any]:
    if eps is None:
        return lambda x, y: (x == y).all()
    return lambda x, y: (abs(as64(x) - as64(y)) <= eps).all()


def pair(left: Expr, right: Expr, name: str, eps: float | None) -> Verdict:
    """Whether two tensors agree: shape and dtype from headers, values by a reduction."""
    if left.aval != right.aval:
        return Known(False, f"'{name}' is {left.aval} on the left and {right.aval} on the right")
    why = f"'{name}' differs in value" + ("" if eps is None else f" by more than {eps:g}")
    return Pending((left, right), both(_agree(eps)), lambda holds: Known(holds, "" if holds else why))
