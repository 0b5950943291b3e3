"""Comparing values: what asserts and `diff` share."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from math import isnan, prod
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, StrictFloat, StrictInt

from brainsurgery_jax._lazy import Array, Flag, jax, np
from brainsurgery_jax.numerics.doubles import as64, differences, is_long, unequal
from brainsurgery_jax.numerics.math import keep_subnormal
from brainsurgery_jax.protocol import Known, Pending, TensorExpr, Verdict
from brainsurgery_jax.reduction import Part, Reduction

if TYPE_CHECKING:
    Test = Callable[..., Flag]


def _as_float(eps: float) -> float:
    try:
        return float(eps)
    except OverflowError:
        raise ValueError("expected a number that a float can hold") from None


Eps = Annotated[StrictFloat | StrictInt, Field(ge=0, description="absolute tolerance"), AfterValidator(_as_float)]
Rtol = Annotated[StrictFloat | StrictInt, Field(ge=0, description="relative tolerance"), AfterValidator(_as_float)]


def quiet(block: Callable[..., Part]) -> Callable[..., Part]:
    """`block` on numpy arrays without warnings of invalid values: here NaN and infinity are values like others."""

    def quietly(*xs: np.ndarray) -> Part:
        with np.errstate(invalid="ignore"):
            return block(*xs)

    return quietly


def _kept(traced: Callable[..., Array] | None) -> Callable[..., Array] | None:
    """A test of traced arrays for which no subnormal number is zero."""
    return None if traced is None else lambda *xs: keep_subnormal(traced, np.bool_, *xs)


def both(holds: Test, traced: Callable[..., Array] | None = None) -> Reduction[bool, bool]:
    """Whether `holds` is true of all blocks. `traced`: the same of whole JAX arrays, under a trace."""
    block = quiet(lambda *xs: bool(holds(*xs)))
    return Reduction(block, lambda a, b: a and b, bool, True, traced=_kept(traced), decisive=False, unordered=True)


def largest(sizes: Callable[..., np.ndarray], traced: Callable[..., Array] | None = None) -> Reduction[float, float]:
    """The largest of the magnitudes that `sizes` makes of blocks; infinity where one is NaN."""

    def block(*xs: np.ndarray) -> float:
        found = float(sizes(*xs).max())
        return float("inf") if isnan(found) else found

    return Reduction(quiet(block), max, float, 0.0, traced=_kept(traced), unordered=True)


# What `traced` maps is one function for equal parameters, so that what was compiled for a check serves the next one.


@lru_cache
def magnitude(eps: float) -> Reduction[float, float]:
    """The largest magnitude of a tensor; traced, whether it is at most `eps`."""
    return largest(lambda x: abs(as64(x)), lambda x: (abs(as64(x)) <= eps).all())


@lru_cache
def difference(eps: float) -> Reduction[float, float]:
    """The largest difference of two tensors; traced, whether it is at most `eps`."""
    return largest(gap, lambda x, y: (abs(as64(x) - as64(y)) <= eps).all())


PIECE = 1 << 16
"""Elements that are looked at together, where that takes several arrays of their size in double precision."""


def in_pieces(block: Callable[..., Part], merge: Callable[[Part, Part], Part]) -> Callable[..., Part]:
    """`block` on short pieces of blocks, one after the other."""

    def by_pieces(*xs: np.ndarray) -> Part:
        return reduce(merge, (block(*(x[at : at + PIECE] for x in xs)) for at in range(0, xs[0].size, PIECE)))

    return quiet(by_pieces)


def gap(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The magnitude of the difference, in 64 bits."""
    if is_long(x):
        return np.abs(differences(x, y))
    difference = as64(x)
    difference -= y
    return np.abs(difference) if np.iscomplexobj(x) else np.abs(difference, out=difference)


@lru_cache
def agreement() -> Reduction[bool, bool]:
    """Whether all of two tensors is equal."""
    return both(_all_equal, lambda x, y: (x == y).all())


_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}
"""The bits of infinity, above which those of NaN lie: for bfloat16, numpy compares ten times faster by them."""


def _magnitudes(x: np.ndarray) -> np.ndarray:
    """The bits of a float but its sign, as integers one bit up."""
    bits = _bits(x)
    return bits + bits


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.itemsize}")


def _all_zero(x: np.ndarray) -> bool:
    return not (_magnitudes(x) if x.dtype.name in _INFINITY else x != 0).any()


def _all_equal(x: np.ndarray, y: np.ndarray) -> bool:
    """Equal bits, or zeros of both signs; NaN equals nothing."""
    if x.dtype.name not in _INFINITY or not x.size:
        return bool((x == y).all())
    size = _magnitudes(x)
    same = np.array_equal(_words(x), _words(y)) or not ((_bits(x) != _bits(y)) & (size | _magnitudes(y) != 0)).any()
    return same and bool(size.max() <= 2 * _INFINITY[x.dtype.name])


def _words(x: np.ndarray) -> np.ndarray:
    """The bytes of an array, eight at a time where they come out even."""
    return x.view(np.uint64 if x.nbytes % 8 == 0 else np.uint8)


def pair(left: TensorExpr, right: TensorExpr, name: str, eps: float | None) -> Verdict:
    """Whether two tensors agree: shape and dtype from headers, values by a reduction."""
    if (known := unlike(left, right, name)) is not None:
        return known
    if eps is None:
        why = f"'{name}' differs in value"
        return Pending((left, right), agreement(), lambda holds: Known(holds, "" if holds else why))
    why = f"'{name}' differs in value by more than {eps:g}"
    return Pending((left, right), difference(eps), lambda most: at_most(eps, most, why))


@lru_cache
def nullity() -> Reduction[bool, bool]:
    """Whether all of a tensor is zero."""
    return both(_all_zero, lambda x: (x == 0).all())


def zero(expr: TensorExpr, name: str, eps: float | None) -> Verdict:
    """Whether all of a tensor is zero, or at most `eps` in magnitude."""
    if eps is None:
        why = f"'{name}' is not zero everywhere"
        return Pending((expr,), nullity(), lambda holds: Known(holds, "" if holds else why))
    why = f"'{name}' is not within {eps:g} of zero everywhere"
    return Pending((expr,), magnitude(eps), lambda most: at_most(eps, most, why))


def unlike(left: TensorExpr, right: TensorExpr, name: str) -> Known | None:
    """That two tensors differ in shape or dtype, if they do."""
    if left.aval == right.aval:
        return None
    return Known(False, f"'{name}' is {left.aval} on the left and {right.aval} on the right")


def at_most(eps: float, most: float, why: str) -> Known:
    """Whether a largest magnitude is at most `eps`; if not, what it is."""
    return Known(most <= eps, "" if most <= eps else f"{why}, the largest is {most:.6g}")


def alike(left: TensorExpr, right: TensorExpr, why: str) -> Verdict:
    """Whether two tensors of one shape and dtype have the same bytes. Under a trace, where there are none, it cannot be
    told."""
    same = both(lambda x, y: np.array_equal(_words(x), _words(y)))
    return Pending((left, right), same, lambda holds: Known(holds, "" if holds else why))


# --- Counts of what is wrong, and where the first or worst is ---------------------------------------------------------


class Faults(NamedTuple):
    """Of `size` elements in row-major order `number` are wrong; the first of them, or the worst, is the one `at`.

    `excess` and `values` tell how wrong it is, where one is worse than another.
    """

    size: int
    number: int
    at: int = -1
    excess: float = 0.0
    values: tuple[float | complex, ...] = ()


NONE = Faults(0, 0)


def _join(a: Faults, b: Faults) -> Faults:
    """The faults of two neighbours: of equally bad ones the first is told."""
    told, shift = (b, a.size) if b.number and (not a.number or b.excess > a.excess) else (a, 0)
    return Faults(
        a.size + b.size, a.number + b.number, told.at + shift if told.number else -1, told.excess, told.values
    )


def _count(wrong: np.ndarray) -> Faults:
    count = int(np.count_nonzero(wrong))
    return Faults(wrong.size, count, int(wrong.argmax()) if count else -1)


def _is_infinite(x: np.ndarray) -> np.ndarray:
    if (most := _INFINITY.get(x.dtype.name)) is not None:
        return _magnitudes(x) >= 2 * most
    if x.dtype == np.float64 or np.iscomplexobj(x):
        return ~np.isfinite(x)
    return ~np.isfinite(x.astype(np.float32))


INFINITE = Reduction(
    in_pieces(lambda x: _count(_is_infinite(x)), _join), _join, lambda found: found, NONE,
    traced=lambda x: (abs(as64(x)) < float("inf")).all(),
)  # fmt: skip
"""How many elements are infinite or NaN, and which is the first."""


@lru_cache
def closeness(rtol: float, atol: float) -> Reduction[Faults, Faults]:
    """Where two tensors differ by more than `atol + rtol * |right|`, and where by most."""

    def block(x: np.ndarray, y: np.ndarray) -> Faults:
        x, y = (one if is_long(one) else as64(one) for one in (x, y))
        gaps, bound = np.abs(differences(x, y)), np.abs(as64(y))
        excess = gaps - (atol + rtol * bound)
        wrong = unequal(x, y) & ~((excess <= 0) & np.isfinite(bound))
        found = _count(wrong)
        if not found.number:
            return found
        # NaN, and infinity against a number, are the worst there is
        ranked = np.where(wrong, np.where(np.isfinite(excess), excess, np.inf), -1.0)
        at = int(ranked.argmax())
        return found._replace(at=at, excess=float(ranked[at]), values=(x[at].item(), y[at].item()))

    def is_close(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = as64(x), as64(y)
        bound = abs(y)
        return ((x == y) | ((abs(x - y) <= atol + rtol * bound) & (bound < float("inf")))).all()

    return Reduction(in_pieces(block, _join), _join, lambda found: found, NONE, traced=_kept(is_close))


def place(at: int, shape: Sequence[int]) -> str:
    """The index of an element, as a reference's slice writes it."""
    return str([at // prod(shape[axis + 1 :]) % size for axis, size in enumerate(shape)])


# --- Norms ------------------------------------------------------------------------------------------------------------

Norm = Literal["fro", "max"]


@lru_cache
def reduce_norm(kind: Norm, holds: Callable[[Array], Array]) -> Reduction[float, float]:
    """The Frobenius norm of a tensor, or its largest magnitude, in float64; traced, whether `holds` is true of it."""
    if kind == "max":
        return largest(lambda x: abs(as64(x)), lambda x: holds(abs(as64(x)).max()))
    squares = in_pieces(lambda x: float(np.sum(abs(as64(x)) ** 2)), operator.add)
    return Reduction(
        squares, operator.add, lambda total: total**0.5, 0.0,
        traced=_kept(lambda x: holds((abs(as64(x)) ** 2).sum() ** 0.5)),
    )  # fmt: skip
