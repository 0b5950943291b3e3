"""`assert` and its operators. What headers settle is settled by `check`; the rest are one-pass reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, StrictInt

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import AssertionKey, AssertionsKey, DTypeName, SlicedPattern, SlicedTemplate, assertion, sink
from brainsurgery_jax.ops._compare import Eps, alike, pair, zero
from brainsurgery_jax.protocol import Every, Expr, Item, Known, Negated, Pending, Some, Verdict, View
from brainsurgery_jax.select import Ref

Bound = Annotated[StrictInt, Field(ge=0)]


@sink("assert", bare="operator")
def assert_(view: View, *, operator: AssertionKey) -> Verdict:
    """Stop the run, with nothing written, unless a condition holds. See `ops assert` for the operators.

    Example: `assert: {all: [{exists: 'ln_f\\..*'}, {dtype: {of: '.*', is: bfloat16}}]}`
    """
    return operator.ask(view)


def _of(view: View, ref: Ref, judge: Callable[[Item], Verdict]) -> Verdict:
    items = view.select(ref, "of", required=False)
    return Every(tuple(judge(i) for i in items)) if items else Known(False, f"no tensor matches '{ref}'")


def _compare(label: str, found: Any, wanted: Any) -> Known:
    return Known(found == wanted, "" if found == wanted else f"{label} is {found}, not {wanted}")


@assertion(bare="target")
def exists(view: View, *, target: SlicedPattern) -> Verdict:
    """At least one tensor matches.

    Example: `assert: {exists: 'ln_f\\.weight'}`
    """
    found = view.match(target, "target")
    return Known(bool(found), "" if found else f"no tensor matches '{target}'")


@assertion()
def count(view: View, *, of: SlicedPattern, is_: Bound) -> Verdict:
    """The number of tensors that match is `is` (0 is possible).

    Example: `assert: {count: {of: 'h\\.\\d+\\.ln_1\\.weight', is: 12}}`
    """
    found = len(view.match(of, "of"))
    return Known(found == is_, "" if found == is_ else f"{found} tensors match '{of}', not {is_}")


@assertion()
def shape(view: View, *, of: SlicedPattern, is_: tuple[StrictInt, ...]) -> Verdict:
    """Every match has exactly this shape (after slicing).

    Example: `assert: {shape: {of: wte.weight, is: [50257, 768]}}`
    """
    return _of(view, of, lambda i: _compare(f"the shape of '{i.name}'", list(i.expr.aval.shape), list(is_)))


@assertion()
def dtype(view: View, *, of: SlicedPattern, is_: DTypeName) -> Verdict:
    """Every match has this dtype.

    Example: `assert: {dtype: {of: '.*', is: bfloat16}}`
    """
    return _of(view, of, lambda i: _compare(f"'{i.name}'", str(i.expr.aval.dtype), str(is_)))


def _bounded(label: str, found: int, bounds: dict[str, int | None]) -> Known:
    holds = {"is": found.__eq__, "ge": found.__ge__, "gt": found.__gt__, "le": found.__le__, "lt": found.__lt__}
    words = {"is": "exactly", "ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    broken = [f"{words[k]} {b}" for k, b in bounds.items() if b is not None and not holds[k](b)]
    return Known(not broken, f"{label} is {found}, expected {' and '.join(broken)}" if broken else "")


def _check_bounds(bounds: dict[str, int | None]) -> None:
    given = {k: b for k, b in bounds.items() if b is not None}
    if not given:
        raise Refusal("bounds-missing", "give at least one of is, ge, gt, le, lt",
                      hint="Write, for example, `is: 2`, or `ge: 1` and `le: 3`.")  # fmt: skip
    low = max([given[k] + (k == "gt") for k in ("ge", "gt", "is") if k in given], default=0)
    high = min([given[k] - (k == "lt") for k in ("le", "lt", "is") if k in given], default=low)
    if low > high:
        text = ", ".join(f"{k}: {b}" for k, b in given.items())
        raise Refusal("bounds-contradict", f"no number satisfies {text}", hint="Loosen one of them, or leave it out.")


@assertion()
def dimensions(
    view: View,
    *,
    of: SlicedPattern,
    is_: Bound | None = None,
    ge: Bound | None = None,
    gt: Bound | None = None,
    le: Bound | None = None,
    lt: Bound | None = None,
) -> Verdict:
    """The number of axes of every match (after slicing) satisfies all bounds.

    Example: `assert: {dimensions: {of: '.*\\.bias', is: 1}}`
    """
    bounds = {"is": is_, "ge": ge, "gt": gt, "le": le, "lt": lt}
    _check_bounds(bounds)
    return _of(view, of, lambda i: _bounded(f"the number of axes of '{i.name}'", len(i.expr.aval.shape), bounds))


def _synonyms(key: str, a: int | None, b: int | None) -> int | None:
    if a is not None and b is not None and a != b:
        raise Refusal("bounds-contradict", f"{key} is given twice, as {a} and {b}", hint="Leave one of them out.")
    return b if a is None else a


def _counter(
    view: View, of: Ref, which: int, word: str, given: dict[str, int | None], at_least: int | None, at_most: int | None
) -> Verdict:
    low, high = _synonyms("at_least", given["ge"], at_least), _synonyms("at_most", given["le"], at_most)
    bounds = given | {"ge": low, "le": high}
    _check_bounds(bounds)

    def judge(name: str) -> Known:
        return _bounded(f"the number of {word} of '{name}'", view.count(of.alias, name)[which], bounds)

    names = view.match(of, "of")
    return Every(tuple(map(judge, names))) if names else Known(False, f"no tensor matches '{of}'")


@assertion()
def reads(
    view: View,
    *,
    of: SlicedPattern,
    is_: Bound | None = None,
    ge: Bound | None = None,
    gt: Bound | None = None,
    le: Bound | None = None,
    lt: Bound | None = None,
    at_least: Bound | None = None,
    at_most: Bound | None = None,
) -> Verdict:
    """How often earlier steps fetched every match.

    Example: `assert: {reads: {of: 'wte.weight', at_most: 2}}`
    """
    given = {"is": is_, "ge": ge, "gt": gt, "le": le, "lt": lt}
    return _counter(view, of, 0, "reads", given, at_least, at_most)


@assertion()
def writes(
    view: View,
    *,
    of: SlicedPattern,
    is_: Bound | None = None,
    ge: Bound | None = None,
    gt: Bound | None = None,
    le: Bound | None = None,
    lt: Bound | None = None,
    at_least: Bound | None = None,
    at_most: Bound | None = None,
) -> Verdict:
    """How often earlier steps stored every match; a loaded tensor counts one.

    Example: `assert: {writes: {of: '.*', is: 1}}`
    """
    given = {"is": is_, "ge": ge, "gt": gt, "le": le, "lt": lt}
    return _counter(view, of, 1, "writes", given, at_least, at_most)


@assertion(shorthand="of")
def iszero(view: View, *, of: SlicedPattern, eps: Eps | None = None) -> Verdict:
    """All elements are zero, or at most `eps` in magnitude. NaN never is.

    Example: `assert: {iszero: {of: '.*\\.delta', eps: 1e-6}}`
    """
    reduction, limit = zero(eps), "zero" if eps is None else f"within {eps:g} of zero"

    def judge(i: Item) -> Verdict:
        why = f"'{i.name}' is not {limit} everywhere"
        return Pending((i.expr,), reduction, lambda holds: Known(holds, "" if holds else why))

    return _of(view, of, judge)


@assertion()
def equal(view: View, *, left: SlicedPattern, right: SlicedTemplate, eps: Eps | None = None) -> Verdict:
    """Every tensor on the left equals the one whose name `right` makes of it, exactly or within `eps`.

    NaN differs from NaN.
    Example: `assert: {equal: {left: 'a::.+', right: 'b::\\g<0>'}}`
    """
    return _paired(view, left, right, lambda here, there, name: pair(here, there, name, eps))


def _paired(view: View, left: Ref, right: Ref, compare: Callable[[Expr, Expr, str], Verdict]) -> Verdict:
    if not view.match(left, "left"):
        return Known(False, f"no tensor matches '{left}'")
    parts: list[Verdict] = []
    for name, (other,) in view.rename(left, {"right": right}):
        if not view.has(right.alias, other):
            parts.append(Known(False, f"there is no '{other}' in '{right.alias}' to compare '{name}' with"))
            continue
        here = view.slice(view.fetch(left.alias, name), left, "left")
        there = view.slice(view.fetch(right.alias, other), right, "right")
        parts.append(compare(here, there, name))
    return Every(tuple(parts))


@assertion()
def identical(view: View, *, left: SlicedPattern, right: SlicedTemplate) -> Verdict:
    """Every tensor on the left has the bytes of the one whose name `right` makes of it.

    Unlike `equal` this tells zeros of either sign apart, and takes a NaN for itself.
    Example: `assert: {identical: {left: 'a::.+', right: 'b::\\g<0>'}}`
    """
    return _paired(view, left, right, alike)


@assertion("all", bare="of")
def all_(view: View, *, of: AssertionsKey) -> Verdict:
    """Every inner assert holds.

    Example: `assert: {all: [{exists: a}, {exists: b}]}`
    """
    return Every(tuple(a.ask(view) for a in of))


@assertion("any", bare="of")
def any_(view: View, *, of: AssertionsKey) -> Verdict:
    """At least one inner assert holds.

    Example: `assert: {any: [{exists: a}, {exists: b}]}`
    """
    return Some(tuple(a.ask(view) for a in of))


@assertion("not", bare="of")
def not_(view: View, *, of: AssertionKey) -> Verdict:
    """The inner assert does not hold. A mistake in the inner assert itself stays an error.

    Example: `assert: {not: {exists: '.*\\.inv_freq'}}`
    """
    return Negated(of.ask(view))
