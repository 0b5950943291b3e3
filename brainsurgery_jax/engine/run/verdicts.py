"""Asserts and reports, settled in the order of the plan as their answers arrive."""

from __future__ import annotations

from collections.abc import Sequence

from brainsurgery_jax.engine.events import Listener, Said
from brainsurgery_jax.engine.plan.schedule import is_empty
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.lower.fold import diagnose_assert
from brainsurgery_jax.lower.program import Check
from brainsurgery_jax.protocol import Pending, PendingReport, settle


class Verdicts:
    """Holds each check of a program until its answers, and those of all earlier checks, have arrived.

    The error is therefore the first failing assert of the plan, whatever was computed first, and reports keep the order
    of the plan.
    """

    def __init__(self, checks: Sequence[Check], tell: Listener):
        self._waiting, self._tell = list(checks), tell
        questions = (q for check in checks for q in check.questions)
        self.answers: dict[Pending, object] = {q: q.reduction.empty for q in questions if is_empty(q)}
        self._deliver()

    @property
    def settled(self) -> bool:
        """Whether every check has been settled."""
        return not self._waiting

    def answer(self, question: Pending, value: object) -> None:
        """Record an answer. Raises PlanError if an assert fails whose turn has come."""
        self.answers[question] = value
        self._deliver()

    def _deliver(self) -> None:
        while self._waiting and all(q in self.answers for q in self._waiting[0].questions):
            check = self._waiting.pop(0)
            match check.says:
                case PendingReport() as report:
                    self._tell(Said(report.document(self.answers)))
                case verdict:
                    known = settle(verdict, self.answers)
                    assert known is not None
                    if not known.holds:
                        raise PlanError([diagnose_assert(check.step, known)])
