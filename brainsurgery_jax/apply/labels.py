"""What `checks="return"` calls its verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from brainsurgery_jax.errors import Span
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.program import Check
from brainsurgery_jax.plan.model import PlanData, Step
from brainsurgery_jax.protocol import PendingReport, Verdict


def asserts_of(plan: PlanData, checks: Sequence[Check]) -> dict[str, Check]:
    """The asserts on values among the checks, by label, in the order of the plan."""
    counts: Counter[str] = Counter()
    out = {}
    for check in checks:
        if isinstance(check.says, PendingReport):
            continue
        label = _label(_number(plan, check.step), check.step.label, check.step.span)
        counts[label] += 1
        out[label if counts[label] == 1 else f"{label} #{counts[label]}"] = check
    return out


def verdict_in(check: Check) -> Verdict:
    """What an assert says; text and reports are none."""
    assert not isinstance(check.says, PendingReport)
    return check.says


def guard_label(plan: PlanData, call: Expr) -> str:
    """The label of all that a step's kernels may refuse."""
    number, step = next(((n, s) for n, s in enumerate(plan.steps, 1) if s.span == call.span), (0, None))
    assert call.kernel is not None
    return _label(number, step.op.name if step and step.op else call.kernel.name, call.span)


def _number(plan: PlanData, step: Step) -> int:
    return next((n for n, s in enumerate(plan.steps, 1) if s is step), 0)


def _label(number: int, name: str, span: Span | None) -> str:
    place = f" ({span.row})" if span and (span.line or span.in_mapping) else ""
    return (f"step {number}: " if number else "") + name + place
