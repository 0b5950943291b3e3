"""Operators of `assert` that compute what they compare: equations, relative errors, ranks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field, StrictInt

from brainsurgery_jax._lazy import np
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.expression.parse import Expression, check_again, parse_expression
from brainsurgery_jax.expression.scope import bind_names, split_sets
from brainsurgery_jax.numerics.agreement import Gap, agreement_in_scale, relative_error, truth
from brainsurgery_jax.numerics.compare import Eps, Rtol, largest, place
from brainsurgery_jax.op import Operands, Partner, SlicedPattern, assertion
from brainsurgery_jax.ops._constants import broadcast
from brainsurgery_jax.ops._matches import NumberFinder, check_names
from brainsurgery_jax.ops._verdicts import Unmatched, absent, check_bounds, check_pairs, judge_types
from brainsurgery_jax.ops.compute import Formula, Job, compute_result
from brainsurgery_jax.ops.value_asserts import MeasureKeys, satisfies, violated
from brainsurgery_jax.protocol import Every, Known, Pending, Row, TensorExpr, Verdict, View
from brainsurgery_jax.select import Ref

ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float8_e4m3fn": 2.0**-3, "float8_e5m2": 2.0**-2}
"""Twice the largest relative error of one rounding, for dtypes in which that is more than 1e-5."""

_BEYOND = "norm(svd(l - r)[1][..., {rank}:]) / maximum(norm(l - r), 1e-30)"
_BEYOND_OWN = "norm(svd(l)[1][..., {rank}:]) / maximum(norm(l), 1e-30)"


@assertion(shorthand="expr")
def holds(
    view: View,
    *,
    expr: Formula,
    from_: Operands | None = None,
    let: Annotated[dict[str, Formula], Field(description="local names, and their expressions")] | None = None,
    rtol: Rtol | None = None,
    atol: Eps = 0.0,
) -> Verdict:
    """An equation over tensors holds for every match: `w == b + s * (u @ v)`; or another condition, for all elements.

    `from`, `expr` and `let` are those of `compute`; without `from`, the names are tensors. The sides of `==` may differ
    by at most `atol + rtol * m`, where `m` is the largest magnitude on the right: so what cancels out costs nothing.
    Without `rtol` it is one rounding of the coarsest float among the tensors, at least 1e-5. NaN equals nothing.
    Example: `assert: {holds: {from: {w: 'h\\.0\\.w', a: h.0.a, b: h.0.b}, expr: 'w == a @ b', rtol: 1e-3}}`
    """
    assert isinstance(expr, Expression)
    from_ = _tensors_named(view, expr) if from_ is None else from_
    lets = {n: local for n, local in (let or {}).items() if isinstance(local, Expression)}
    check_names(expr, tuple(from_), lets)
    first, *others = from_.items()
    if not view.match(first[1], "from"):
        return absent(view, first[1])
    found = view.pair(first[1], dict(others))
    rows = sorted([*found.rows, *found.alone])
    lost = [(ref, name) for _, more in rows for (_, ref), name in zip(others, more, strict=True)
            if not view.has(ref.alias, name)]  # fmt: skip
    if lost:
        return Known(False, f"there is no '{lost[0][1]}' in '{lost[0][0].alias}'")
    asking = _Equation(Job(view, from_, None, None, None, NumberFinder(view, first[1])), expr, lets, rows)
    return Every(tuple(asking.judge(row, rtol, atol) for row in rows))


def _tensors_named(view: View, expr: Expression) -> Mapping[str, Ref]:
    """The tensors of the default alias that an expression names."""
    alias = view.default_alias or next(iter(view.aliases()), "")
    names = sorted(expr.names)
    if not names:
        raise expr.refusal(expr.tree, "the equation names no tensor")
    return {name: Ref(alias, name if at else re.escape(name)) for at, name in enumerate(names)}


class _Equation:
    """An equation with the tensors of a step."""

    def __init__(
        self, job: Job, expression: Expression, lets: Mapping[str, Expression], rows: Sequence[Row]
    ) -> None:  # fmt: skip
        self.job, self.expression = job, expression
        split = [split_sets(bind_names(side, lets)) for side in _sides(expression)]
        self.sides = [(side, {term.name: job.join(term, rows) for term in sets}) for side, sets in split]

    def judge(self, row: Row, rtol: float | None, atol: float) -> Verdict:
        """The verdict on one match."""
        view, operands = self.job.view, self.job.fetch(row)
        try:
            made = [self._compute(side, row, {**operands, **over}) for side, over in self.sides]
        except Refusal as bad:
            raise bad.about(self.job.about(row)) from bad
        text = f"'{self.expression.text}' does not hold for '{row[0]}'"
        if len(made) == 1:
            return Pending((made[0],), truth(), lambda all_true: Known(all_true, "" if all_true else text))
        try:
            shape = np.broadcast_shapes(*(side.aval.shape for side in made))
        except ValueError:
            return Known(False, f"{text}: its sides are {made[0].aval} and {made[1].aval}")
        left, right = (s if s.aval.shape == shape else view.apply(broadcast, s, shape=shape) for s in made)
        most = _rounding([e for e in operands.values()]) if rtol is None else rtol

        def verdict(found: Gap) -> Known:
            if found.most <= atol + most * found.scale:
                return Known(True)
            one, other = (f"{x:.6g}" for x in found.values)
            where = f"{one} against {other} at {place(found.at, shape)}"
            return Known(False, f"{text} (rtol {most:g}, atol {atol:g}), the worst is {where}")

        return Pending((left, right), agreement_in_scale(most, atol), verdict)

    def _compute(self, side: Expression, row: Row, operands: Mapping[str, TensorExpr]) -> TensorExpr:
        numbers = self.job.numbers.find((side,), [row])
        return compute_result(self.job.view, side, operands, numbers, None, None, None)


def _sides(expression: Expression) -> Iterator[Expression]:
    """The sides of `==`, or the whole condition."""
    match expression.tree:
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            for side in (left, right):
                at = (side.col_offset, side.end_col_offset or side.col_offset)  # what tells one side from the other
                yield check_again(replace(expression, tree=side, at=at))
        case ast.Compare() | ast.BinOp(op=ast.BitAnd() | ast.BitOr()) | ast.UnaryOp(op=ast.Invert()) | ast.Call():
            yield expression
        case tree:
            raise expression.refusal(tree, "expected an equation, such as 'a == b'")


def _rounding(operands: Sequence[TensorExpr]) -> float:
    """The tolerance for one rounding to the coarsest dtype of operands."""
    return max([1e-5, *(ROUNDING.get(str(e.aval.dtype), 0.0) for e in operands)])


@assertion("relative_error")
def check_relative_error(
    view: View, *, left: SlicedPattern, right: Partner, size: MeasureKeys, unmatched: Unmatched = None
) -> Verdict:
    """The Frobenius norm of `left - right`, divided by that of `right`, satisfies all bounds for every match.

    In float64, so the dtypes may differ. NaN satisfies no bound; 0 against 0 is no error.
    Example: `assert: {relative_error: {left: 'a::.+', right: 'b::\\g<0>', le: 1e-2}}`
    """
    bounds = {"is": size.is_, "ge": size.ge, "gt": size.gt, "le": size.le, "lt": size.lt}
    check_bounds(bounds, whole=False)
    given = tuple((k, b) for k, b in bounds.items() if b is not None)

    def compare(here: TensorExpr, there: TensorExpr, name: str) -> Verdict:
        if (known := judge_types(here, there, name)) is not None:
            return known

        def verdict(found: float) -> Known:
            broken = violated(found, given, 1e-12)
            return Known(not broken, f"the relative error of '{name}' is {found:.6g}, expected {broken}" * bool(broken))

        return Pending((here, there), relative_error(satisfies(given, 1e-12)), verdict)

    return check_pairs(view, left, right, unmatched, compare)


@assertion()
def low_rank(
    view: View,
    *,
    left: SlicedPattern,
    right: Partner | None = None,
    rank: Annotated[StrictInt, Field(ge=0)],
    rtol: Rtol = 1e-3,
    unmatched: Unmatched = None,
) -> Verdict:
    """Every match, or its difference to the tensor that `right` names, is a matrix of at most this rank.

    By singular values in double precision: what lies beyond the rank is at most `rtol` of the Frobenius norm. Leading
    axes are stacks of matrices, judged together.
    Example: `assert: {low_rank: {left: 'tuned::.+\\.weight', right: 'base::\\g<0>', rank: 16, rtol: 1e-2}}`
    """

    def judge(operands: dict[str, TensorExpr], name: str) -> Verdict:
        shape = operands["l"].aval.shape
        if len(shape) < 2:
            return Known(False, f"'{name}' is {operands['l'].aval}, which is no matrix")
        if rank >= min(shape[-2:]):
            return Known(True)
        text = (_BEYOND if "r" in operands else _BEYOND_OWN).format(rank=rank)
        beyond = compute_result(view, parse_expression(text), operands, (), None, None, None)

        def verdict(found: float) -> Known:
            why = f"of '{name}', {found:.3g} of the norm lies beyond rank {rank}, more than {rtol:g}"
            return Known(found <= rtol, "" if found <= rtol else why)

        return Pending((beyond,), largest(np.abs, lambda x: (abs(x) <= rtol).all()), verdict)

    if right is None:
        items = view.select(left, "left", required=False)
        return Every(tuple(judge({"l": i.expr}, i.name) for i in items)) if items else absent(view, left)
    return check_pairs(
        view, left, right, unmatched,
        lambda here, there, name: judge_types(here, there, name) or judge({"l": here, "r": there}, name),
    )  # fmt: skip
