"""Operators of `assert` that look at values, each in one pass over blocks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Annotated, Any

from pydantic import Field, StrictFloat, StrictInt

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.keys import KeyGroup, Word
from brainsurgery_jax.numerics.compare import (
    INFINITE,
    Eps,
    Faults,
    Norm,
    Rtol,
    alike,
    closeness,
    pair,
    place,
    reduce_norm,
    unlike,
    zero,
)
from brainsurgery_jax.op import Partner, SlicedPattern, assertion
from brainsurgery_jax.ops._verdicts import WORDS, Unmatched, check_bounds, check_pairs, judge_types, of_each
from brainsurgery_jax.protocol import Item, Known, Pending, TensorExpr, Verdict, View

Measure = Annotated[StrictFloat | StrictInt, Field(ge=0)]


@dataclass(frozen=True)
class MeasureKeys(KeyGroup):
    """Bounds of a measure."""

    is_: Measure | None = None
    ge: Measure | None = None
    gt: Measure | None = None
    le: Measure | None = None
    lt: Measure | None = None


@assertion(shorthand="of")
def iszero(view: View, *, of: SlicedPattern, eps: Eps | None = None) -> Verdict:
    """All elements are zero, or at most `eps` in magnitude. NaN never is.

    Example: `assert: {iszero: {of: '.*\\.delta', eps: 1e-6}}`
    """

    return of_each(view, of, lambda i: zero(i.expr, i.name, eps))


@assertion(shorthand="of")
def finite(view: View, *, of: SlicedPattern) -> Verdict:
    """No element is NaN or infinite.

    Example: `assert: {finite: '.*'}`
    """

    def judge(i: Item) -> Verdict:
        if not i.expr.aval.dtype.is_inexact:
            return Known(True)
        return Pending((i.expr,), INFINITE, lambda found: _faulty(i, found, "not finite", "first"))

    return of_each(view, of, judge)


def _faulty(item: Item, found: Faults, what: str, told: str) -> Known:
    """The verdict that no element is wrong, or how many are, and where one of them is."""
    if not found.number:
        return Known(True)
    count = "1 value that is" if found.number == 1 else f"{found.number:,} values that are"
    return Known(False, f"'{item.name}' has {count} {what}, {told} at {place(found.at, item.expr.aval.shape)}")


def violated(found: float, bounds: Iterable[tuple[str, float]], eps: float) -> str:
    """The bounds that a measure violates, in words; empty if there are none."""
    tests = _tests(eps)
    return " and ".join(f"{WORDS[k]} {b:g}" for k, b in bounds if not tests[k](found, b))


def _tests(eps: float) -> Mapping[str, Callable[[Any, float], Any]]:
    return {"is": lambda n, b: abs(n - b) <= eps, "ge": operator.ge, "gt": operator.gt, "le": operator.le,
            "lt": operator.lt}  # fmt: skip


@lru_cache
def satisfies(bounds: tuple[tuple[str, float], ...], eps: float) -> Callable[[Array], Array]:
    """Whether a number satisfies all bounds; one function for equal ones."""
    tests = _tests(eps)
    return lambda n: reduce(operator.and_, (tests[k](n, b) for k, b in bounds))


@assertion()
def norm(
    view: View,
    *,
    of: SlicedPattern,
    size: MeasureKeys,
    ord: Annotated[Norm, Word] = "fro",
    eps: Eps = 1e-6,
) -> Verdict:
    """The norm of every match satisfies all bounds; `is` within `eps`. NaN satisfies none.

    `ord: fro` is the root of the sum of squares, `ord: max` the largest magnitude; in float64.
    Example: `assert: {norm: {of: 'direction', is: 1, eps: 1e-3}}`
    """
    bounds = {"is": size.is_, "ge": size.ge, "gt": size.gt, "le": size.le, "lt": size.lt}
    check_bounds(bounds, whole=False)
    given = {k: b for k, b in bounds.items() if b is not None}

    def judge(i: Item) -> Verdict:
        def verdict(n: float) -> Known:
            broken = violated(n, given.items(), eps)
            why = f"the {ord} norm of '{i.name}' is {n:.6g}, expected {broken}"
            return Known(not broken, why if broken else "")

        if i.expr.aval.dtype.is_opaque:
            return Known(False, f"'{i.name}' is {i.expr.aval}, whose values cannot be computed with")
        return Pending((i.expr,), reduce_norm(ord, satisfies(tuple(given.items()), eps)), verdict)

    return of_each(view, of, judge)


@assertion()
def equal(
    view: View, *, left: SlicedPattern, right: Partner, eps: Eps | None = None, unmatched: Unmatched = None
) -> Verdict:
    """Every tensor on the left equals the one that `right` names for it, exactly or within `eps`.

    NaN differs from NaN.
    Example: `assert: {equal: {left: 'a::.+', right: 'b::\\g<0>'}}`
    """
    return check_pairs(view, left, right, unmatched, lambda here, there, name: pair(here, there, name, eps))


@assertion()
def close(
    view: View,
    *,
    left: SlicedPattern,
    right: Partner,
    rtol: Rtol = 1e-5,
    atol: Eps = 1e-8,
    unmatched: Unmatched = None,
) -> Verdict:
    """Every tensor on the left is close to the one on the right: they differ by at most `atol + rtol * |right|`.

    Compared in float64, so the dtypes may differ. NaN is close to nothing, infinity to itself.
    Example: `assert: {close: {left: 'a::.+', right: 'b::\\g<0>', rtol: 1e-3}}`
    """

    def compare(here: TensorExpr, there: TensorExpr, name: str) -> Verdict:
        if (known := judge_types(here, there, name)) is not None:
            return known

        def judge(found: Faults) -> Known:
            known = _faulty(Item(name, here), found, f"not close (rtol {rtol:g}, atol {atol:g})", "the worst")
            if known.holds:
                return known
            one, other = (str(x) if isinstance(x, int) else f"{x:.8g}" for x in found.values)
            return known._replace(why=f"{known.why}: {one} against {other}")

        return Pending((here, there), closeness(rtol, atol), judge)

    return check_pairs(view, left, right, unmatched, compare)


@assertion()
def identical(view: View, *, left: SlicedPattern, right: Partner, unmatched: Unmatched = None) -> Verdict:
    """Every tensor on the left has the bytes of the one that `right` names for it.

    If both checkpoints record types, these must agree, too: a jax or numpy array, a Python number, a random key.
    Unlike `equal`, it distinguishes 0 from -0, and NaN equals the same NaN.
    Example: `assert: {identical: {left: 'a::.+', right: 'b::\\g<0>'}}`
    """

    def compare(here: TensorExpr, there: TensorExpr, name: str) -> Verdict:
        return unlike(here, there, name) or alike(here, there, f"'{name}' differs in its bytes")

    def types(name: str, other: str) -> Known:
        gap = view.type_gap((left.alias, name), (right.alias, other))
        return Known(gap is None, "" if gap is None else f"'{name}' is {gap[0]} on the left and {gap[1]} on the right")

    return check_pairs(view, left, right, unmatched, compare, types)
