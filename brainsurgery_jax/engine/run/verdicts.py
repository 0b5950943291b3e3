"""Questions, asserts and reports: partial results are merged while tensors are streamed, and checks are settled in the
order of the plan as their answers arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.engine.compute.folds import summarize
from brainsurgery_jax.engine.events import Listener, Said
from brainsurgery_jax.engine.plan.schedule import is_empty
from brainsurgery_jax.engine.plan.work import Ask
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.lower.fold import diagnose_assert
from brainsurgery_jax.lower.program import Check
from brainsurgery_jax.protocol import Pending, PendingReport, settle


class Tally:
    """The partial results of a question, merged in the order of the work, so that threads change no bit."""

    def __init__(self, ask: Ask):
        self._reduction, self._left = ask.question.reduction, ask.parts
        self._merged: list[object] = []
        self._decisive: list[object] = []  # set on any thread: who does not see it yet only does more than is needed

    @property
    def known(self) -> object:
        """The partial result that decides the question, so that no more blocks need to be read; else None."""
        return self._decisive[0] if self._decisive else None

    def look(self, start: int, blocks: Sequence[Array]) -> object:
        """The partial result of a block of each tensor, from element `start` on. Called on any thread."""
        part = summarize(self._reduction, start, blocks)
        if self._reduction.decisive is not None and part == self._reduction.decisive:
            self._decisive.append(part)
        return part

    def add(self, part: object) -> bool:
        """Merge a partial result; return whether it was the last. Called on the main thread, in order of the work."""
        self._merged[:] = [self._reduction.merge(self._merged[0], part)] if self._merged else [part]
        self._left -= 1
        return not self._left

    def answer(self) -> object:
        """The answer, once all partial results have been merged; they are not kept beside it."""
        return self._reduction.finish(self._merged.pop())


class Verdicts:
    """Holds each check of a program until its answers, and those of all earlier checks, have arrived.

    The error is therefore the first failing assert of the plan, whatever was computed first, and reports keep the order
    of the plan. `together`: other processes have answers, too, and nothing is settled until `learn` brings them.
    """

    def __init__(self, checks: Sequence[Check], tell: Listener, *, together: bool = False):
        self._waiting, self._tell, self._together = list(checks), tell, together
        self._tallies: dict[int, Tally] = {}
        questions = (q for check in checks for q in check.questions)
        self.answers: dict[Pending, object] = {q: q.reduction.empty for q in questions if is_empty(q)}
        if not together:
            self._deliver()

    @property
    def settled(self) -> bool:
        """Whether every check has been settled."""
        return not self._waiting

    def tally(self, ask: Ask) -> Tally:
        """The partial results of a question. Called on any thread."""
        return self._tallies.setdefault(ask.number, Tally(ask))

    def add(self, ask: Ask, part: object) -> None:
        """Merge a partial result of a question, and record the answer after the last. Raises PlanError if an assert
        fails whose turn has come."""
        if (tally := self.tally(ask)).add(part):
            self.answers[ask.question] = tally.answer()
            if not self._together:
                self._deliver()

    def learn(self, answers: Mapping[Pending, object]) -> None:
        """Take the answers of all processes. Raises PlanError if an assert fails whose turn has come: on all processes
        the same."""
        self.answers |= answers
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
