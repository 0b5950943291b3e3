"""`bs.audit`: plant errors into a plan and its inputs, run each on stand-ins, and say what sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from brainsurgery_jax.api import Plan, expect_plan
from brainsurgery_jax.auditing.again import AGAIN
from brainsurgery_jax.auditing.cases import Case, Mutant, Mutator, from_plan, spread
from brainsurgery_jax.auditing.input_mutators import INPUT_MUTATORS
from brainsurgery_jax.auditing.name_mutators import NAME_MUTATORS
from brainsurgery_jax.auditing.runner import Level, TrialOutcome, judge, try_case
from brainsurgery_jax.auditing.stand_ins import make_stand_ins, with_fingerprints
from brainsurgery_jax.auditing.step_mutators import STEP_MUTATORS
from brainsurgery_jax.auditing.suggest import Suggestion, suggest
from brainsurgery_jax.errors import PlanError

MUTATORS: tuple[Mutator, ...] = (*NAME_MUTATORS, *STEP_MUTATORS, *INPUT_MUTATORS, AGAIN)
SEEN = frozenset({Level.CHECK, Level.ASSERT, Level.RUN, Level.WARNED})


@dataclass(frozen=True, slots=True)
class Planted:
    """One planted error: the mutator and its class, what was changed, how it was seen, and what the run said."""

    mutator: str
    kind: str
    what: str
    level: Level
    said: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """What `audit` found. `factor`: by which sizes were divided in the stand-ins (1: they are whole).

    `suggestions`: asserts that see errors which were missed, each tried: the right plan passes with all of them.
    """

    planted: tuple[Planted, ...]
    suggestions: tuple[Suggestion, ...] = ()
    factor: int = 1

    @property
    def seen(self) -> tuple[Planted, ...]:
        """The errors that were seen."""
        return tuple(each for each in self.planted if each.level in SEEN)

    @property
    def missed(self) -> tuple[Planted, ...]:
        """The errors that nothing saw, although they change what is written."""
        return tuple(each for each in self.planted if each.level is Level.MISSED)

    @property
    def helped(self) -> frozenset[str]:
        """The missed errors (their `what`) that the suggestions see."""
        return frozenset(what for suggestion in self.suggestions for what in suggestion.sees)

    def __repr__(self) -> str:
        total = len(self.seen) + len(self.missed)
        return f"<Audit: {len(self.seen)} of {total} planted errors seen, {len(self.helped)} more by suggested asserts>"


def audit(plan: Plan, *, each: int = 3, suggestions: bool = True) -> Audit:
    """Plant errors into a plan and its inputs, and find out which of them the plan's checks see.

    Every error is planted alone, and the plan is run with it on small stand-ins for its checkpoints, in memory and a
    temporary folder: no checkpoint of the user is written, and of large ones only the leading part of each tensor is
    read. An error after which the plan writes the same bytes is `equivalent`, and counts neither as seen nor as missed.

    **Arguments**: `each` is the largest number of errors that a mutator plants. With `suggestions`, asserts are tried
    that see errors which the plan misses.
    **Returns** an `Audit`: what was planted and how it was seen, and asserts that would see more.
    **Raises** PlanError for a plan with mistakes, or one that does not pass on the stand-ins; StoreError for what
    cannot be read.
    **Example**:

    >>> found = bs.audit(bs.load("plan.yaml"), each=1)
    >>> any(one.mutator == "name misspelt" and one.level == "check" for one in found.seen)
    True
    """
    expect_plan(plan, "audit")
    shrunk = make_stand_ins(plan)
    case = with_fingerprints(from_plan(plan, shrunk.stand_ins))
    right = try_case(case)
    if right.level is not None:
        raise PlanError(right.found)
    planted: list[Planted] = []
    missed: list[tuple[str, Mutant]] = []
    for mutator, mutant in plant(case, each):
        outcome = try_case(mutant.case)
        level = judge(outcome, right)
        planted.append(Planted(mutator.name, mutator.kind, mutant.what, level, said(outcome, right)))
        if level is Level.MISSED:
            missed.append((mutant.what, mutant))
    found = suggest(case, dict(missed), shrunk) if suggestions and missed else ()
    return Audit(tuple(planted), found, shrunk.factor)


def plant(case: Case, each: int) -> Iterator[tuple[Mutator, Mutant]]:
    """The mutants of a case: at most so many of each mutator, and no case twice. They are made when they are asked for,
    since those of inputs hold tensors: once to count them, and those that are chosen again."""
    known: set[str] = set()
    for mutator in MUTATORS:
        told = [mutant.what for mutant in mutator.plant(case)]
        chosen = set(spread([at for at, what in enumerate(told) if what not in known], each))
        known |= {told[at] for at in chosen}
        yield from ((mutator, mutant) for at, mutant in enumerate(mutator.plant(case)) if at in chosen)


def said(outcome: TrialOutcome, right: TrialOutcome) -> str:
    """What the run said of the error, on one line."""
    new = [d for d in outcome.found if d.code not in {other.code for other in right.found}] or list(outcome.found)
    return " ".join(new[0].message.split()) if outcome.found and new else ""


def by_kind(planted: Sequence[Planted]) -> Mapping[str, Mapping[Level, int]]:
    """How many errors of each class were seen at each level."""
    kinds = dict.fromkeys(each.kind for each in planted)
    return {kind: {level: sum(1 for p in planted if p.kind == kind and p.level is level) for level in Level}
            for kind in kinds}  # fmt: skip
