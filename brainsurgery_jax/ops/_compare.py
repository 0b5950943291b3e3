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


def both(holds: Callable[..., Any], traced: Callable[..., Any] | None = None) -> Reduction:
    """Whether `holds` is true of all blocks: numpy arrays, under a trace one whole JAX array (so methods, no `np`, or
    another function `traced`)."""
    block = quiet(lambda *xs: bool(holds(*xs)))
    traced = traced or holds
    return Reduction(block, lambda a, b: a and b, bool, True, traced=traced, decisive=False, unordered=True)


def zero(eps: float | None) -> Reduction:
    """Whether all is zero, or at most `eps` in magnitude."""
    if eps is None:
        return both(_all_zero, lambda x: (x == 0).all())
    return both(lambda x: (abs(as64(x)) <= eps).all())


def as64(x: Any) -> Any:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def gap(x: Any, y: Any) -> Any:
    """The magnitude of the difference, in 64 bits."""
    difference = as64(x)
    difference -= y
    return np.abs(difference) if x.dtype.kind == "c" else np.abs(difference, out=difference)


def agreement(eps: float | None) -> Reduction:
    """Whether all of two tensors is equal, or differs by at most `eps`."""
    if eps is None:
        return both(_all_equal, lambda x, y: (x == y).all())
    return both(lambda x, y: (gap(x, y) <= eps).all(), lambda x, y: (abs(as64(x) - as64(y)) <= eps).all())


_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}
"""The bits of infinity, above which those of NaN lie: for bfloat16, numpy compares ten times faster by them."""


def _magnitudes(x: Any) -> Any:
    """The bits of a float but its sign, as integers one bit up."""
    bits = _bits(x)
    return bits + bits


def _bits(x: Any) -> Any:
    return x.view(f"u{x.itemsize}")


def _all_zero(x: Any) -> bool:
    return not _magnitudes(x).any() if x.dtype.name in _INFINITY else (x == 0).all()


def _all_equal(x: Any, y: Any) -> bool:
    """Equal bits, or zeros of both signs; NaN equals nothing."""
    if x.dtype.name not in _INFINITY or not x.size:
        return (x == y).all()
    size = _magnitudes(x)
    same = np.array_equal(*map(_words, (x, y))) or not ((_bits(x) != _bits(y)) & (size | _magnitudes(y) != 0)).any()
    return same and size.max() <= 2 * _INFINITY[x.dtype.name]


def _words(x: Any) -> Any:
    """The bytes of an array, eight at a time where they come out even."""
    return x.view(np.uint64 if x.nbytes % 8 == 0 else np.uint8)


def pair(left: Expr, right: Expr, name: str, eps: float | None) -> Verdict:
    """Whether two tensors agree: shape and dtype from headers, values by a reduction."""
    if left.aval != right.aval:
        return Known(False, f"'{name}' is {left.aval} on the left and {right.aval} on the right")
    why = f"'{name}' differs in value" + ("" if eps is None else f" by more than {eps:g}")
    return Pending((left, right), agreement(eps), lambda holds: Known(holds, "" if holds else why))


def alike(left: Expr, right: Expr, name: str) -> Verdict:
    """Whether two tensors have the same bytes. Under a trace, where there are none, it cannot be told."""
    if left.aval != right.aval:
        return Known(False, f"'{name}' is {left.aval} on the left and {right.aval} on the right")
    same = both(lambda x, y: np.array_equal(_words(x), _words(y)))._replace(traced=None)
    return Pending((left, right), same, lambda holds: Known(holds, "" if holds else f"'{name}' differs in its bytes"))
