"""How two tensors compare, block by block: whether they agree, and in figures how far they differ.

NaN is equal to NaN at the same place, zeros of both signs are equal: what is asked is whether two checkpoints hold the
same values, and a checkpoint does hold those of its copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from math import isfinite, prod, sqrt
from typing import NamedTuple

from brainsurgery_jax._lazy import np
from brainsurgery_jax.numerics.doubles import as64, as_single, correct, unequal
from brainsurgery_jax.reduction import Part, Reduction

EQUAL, CLOSE, APART = range(3)
"""Of a pair: equal values, all within the tolerance, or some beyond it."""

PIECE = 1 << 17
"""Elements that are looked at together: few enough to hold several arrays of them in double precision, enough that
threads do not wait for the interpreter between calls (32,000 take twice as long)."""


class Tolerance(NamedTuple):
    """Values may differ by `eps + rtol * |left|`."""

    eps: float = 0.0
    rtol: float = 0.0


class Sums(NamedTuple):
    """Over the elements that are finite on both sides: squares of left and right, their products, squares of the
    difference."""

    left: float = 0.0
    right: float = 0.0
    products: float = 0.0
    difference: float = 0.0


class Figures(NamedTuple):
    """How far two tensors of `size` elements differ.

    `differing` elements are beyond the tolerance. `largest` is the largest difference among them (infinite where NaN
    or infinity stands against something else), first found at element `at` in row-major order, with `values` there.
    `nans` counts NaN on the left and on the right, `sums` gives the norms.
    """

    size: int
    differing: int = 0
    at: int = -1
    largest: float = 0.0
    values: tuple[object, ...] = ()
    nans: tuple[int, int] = (0, 0)
    sums: Sums = Sums()

    @property
    def relative(self) -> float | None:
        """The norm of the difference over the norm of the left tensor; None where that is 0."""
        return _ratio(sqrt(self.sums.difference), sqrt(self.sums.left))

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between the two; None where one of them is 0."""
        found = _ratio(self.sums.products, sqrt(self.sums.left) * sqrt(self.sums.right))
        return None if found is None else max(-1.0, min(1.0, found))


def place_of_largest(found: Figures, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The index of the largest difference in tensors of that shape; None if nothing differs."""
    if not found.differing:
        return None
    return tuple(found.at // prod(shape[axis + 1 :]) % size for axis, size in enumerate(shape))


def describe_figures(found: Figures, shape: Sequence[int]) -> tuple[str, ...]:
    """How far two tensors of that shape differ, in words: how many elements, the largest, ratios, NaN."""
    if not found.differing:
        return ("no value differs" if not found.sums.difference else "values within the tolerance",)
    left, right = (f"{value:.6g}" if isinstance(value, float) else str(value) for value in found.values)
    place = list(place_of_largest(found, shape) or ())
    worst = f"largest {found.largest:.4g} at {place}: {left} -> {right}"
    ratios = (("relative", found.relative, 4), ("cosine", found.cosine, 6))
    told = ", ".join(f"{name} {value:.{digits}g}" for name, value, digits in ratios if value is not None)
    nans = f"NaN: {found.nans[0]:,} -> {found.nans[1]:,}" if any(found.nans) else ""
    return f"{found.differing:,} of {found.size:,} differ", worst, told, nans


def _ratio(a: float, b: float) -> float | None:
    return a / b if b and isfinite(a) and isfinite(b) else None


def likeness(tolerance: Tolerance) -> Reduction[int, int]:
    """Whether two tensors are EQUAL, CLOSE or APART; the first difference beyond the tolerance settles it."""

    def block(x: np.ndarray, y: np.ndarray) -> int:
        found = EQUAL
        for a, b in () if _same_bits(x, y) else _pieces(x, y):
            found = max(found, _likeness(as_single(a), as_single(b), tolerance))
            if found == APART:
                break
        return found

    return Reduction(_quiet(block), max, int, EQUAL, decisive=APART, unordered=True)


def measuring(tolerance: Tolerance) -> Reduction[Figures, Figures]:
    """The Figures of two tensors."""

    def block(x: np.ndarray, y: np.ndarray) -> Figures:
        return reduce(_join, (_measure(a, b, tolerance) for a, b in _pieces(x, y)))

    return Reduction(_quiet(block), _join, lambda found: found, Figures(0))


def _quiet(block: Callable[..., Part]) -> Callable[..., Part]:
    """`block` without warnings: NaN, infinity and sums that overflow are dealt with."""

    def ignore_float_errors(*xs: np.ndarray) -> Part:
        with np.errstate(all="ignore"):
            return block(*xs)

    return ignore_float_errors


def _pieces(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return ((x[at : at + PIECE], y[at : at + PIECE]) for at in range(0, x.size, PIECE))


def _same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    word = np.uint64 if x.nbytes % 8 == 0 else np.uint8
    return x.dtype == y.dtype and np.array_equal(x.view(word), y.view(word))


def _likeness(x: np.ndarray, y: np.ndarray, tolerance: Tolerance) -> int:
    if tolerance.eps and not tolerance.rtol and all(np.issubdtype(z.dtype, np.floating) for z in (x, y)):
        most = _largest_gap(x, y)
        if isfinite(most) and most <= tolerance.eps:
            return CLOSE if most else EQUAL
    apart = _differing(x, y)
    if not apart.any():
        return EQUAL
    return APART if _beyond(apart, x, y, tolerance).any() else CLOSE


def _largest_gap(x: np.ndarray, y: np.ndarray) -> float:
    gaps = x.astype(np.float64)
    gaps -= y
    return float(np.abs(gaps, out=gaps).max())


def _differing(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which elements are unequal, but for NaN beside NaN."""
    apart = unequal(x, y)
    return apart & ((x == x) | (y == y)) if apart.any() else apart


def _beyond(apart: np.ndarray, x: np.ndarray, y: np.ndarray, tolerance: Tolerance) -> np.ndarray:
    """Which of the elements that are `apart` differ by more than the tolerance; where one is infinite, they do."""
    if tolerance == Tolerance():
        return apart
    left = as64(x)
    within = np.abs(correct(left - as64(y), x, y)) <= tolerance.eps + tolerance.rtol * np.abs(left)
    return apart & ~(within & np.isfinite(left))


def _measure(x: np.ndarray, y: np.ndarray, tolerance: Tolerance) -> Figures:
    """The figures of a piece."""
    if _same_bits(x, y):
        return _of_equal(as64(as_single(x)))
    x, y = as_single(x), as_single(y)
    left, right = as64(x), as64(y)
    gaps = correct(left - right, x, y)
    nans, sums = (0, 0), _sums(left, right, gaps)
    ordinary = all(map(isfinite, sums))
    if not ordinary:
        nans, sums = _nans(left, right), _finite_sums(left, right)
    apart = unequal(x, y) if ordinary else _differing(x, y)
    wrong = _beyond(apart, x, y, tolerance)
    count = int(np.count_nonzero(wrong))
    if not count:
        return Figures(x.size, nans=nans, sums=sums)
    at, largest = _largest(np.abs(gaps), wrong, all_told=ordinary and wrong is apart)
    return Figures(x.size, count, at, largest, (x[at].item(), y[at].item()), nans, sums)


def _largest(sizes: np.ndarray, wrong: np.ndarray, *, all_told: bool) -> tuple[int, float]:
    """Where the largest of the differences that are wrong is, and how large. `all_told`: the others are 0, none NaN."""
    if not all_told:
        sizes = np.where(wrong, np.where(np.isnan(sizes), np.inf, sizes), -1.0)
    at = int(sizes.argmax())
    return at, float(sizes[at])


def _of_equal(x: np.ndarray) -> Figures:
    square = _sum(x, x)
    if isfinite(square):
        return Figures(x.size, sums=Sums(square, square, square))
    return Figures(x.size, nans=_nans(x, x), sums=_finite_sums(x, x))


def _nans(x: np.ndarray, y: np.ndarray) -> tuple[int, int]:
    return int(np.count_nonzero(np.isnan(x))), int(np.count_nonzero(np.isnan(y)))


def _finite_sums(x: np.ndarray, y: np.ndarray) -> Sums:
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    return _sums(x, y, x - y)


def _sums(x: np.ndarray, y: np.ndarray, gaps: np.ndarray) -> Sums:
    if x.dtype != y.dtype:  # a real tensor beside a complex one
        x, y = x.astype(np.complex128), y.astype(np.complex128)
    return Sums(_sum(x, x), _sum(y, y), _sum(x, y), _sum(gaps, gaps))


def _sum(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of products; of complex numbers the real part, one side conjugated. Not by BLAS, whose threads change
    the order."""
    return float(np.einsum("i,i->", x.view(np.float64), y.view(np.float64)))


def _join(a: Figures, b: Figures) -> Figures:
    """The figures of two neighbours; of equally large differences the first is told."""
    told, shift = (b, a.size) if b.differing and (not a.differing or b.largest > a.largest) else (a, 0)
    return Figures(
        a.size + b.size,
        a.differing + b.differing,
        told.at + shift if told.differing else -1,
        told.largest,
        told.values,
        (a.nans[0] + b.nans[0], a.nans[1] + b.nans[1]),
        Sums(*(i + j for i, j in zip(a.sums, b.sums, strict=True))),
    )
