"""Asserts that would see what a plan misses: candidates from what the right plan writes, each of them tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brainsurgery_jax.auditing.candidates import LAST, AssertCandidate, candidates_for
from brainsurgery_jax.auditing.cases import ASSERT, Case, Data, Mutant, show
from brainsurgery_jax.auditing.runner import TrialOutcome, try_case
from brainsurgery_jax.auditing.stand_ins import Shrunk

ROUNDS = 6
"""Candidates that the right plan does not pass are left out, those that one run names at a time."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Steps to add to the end of a plan, one a line, and the errors (their `what`) that they see.

    `of_output`: they are no steps but `asserts` of the output. `alias`: the one that an output must then name, since
    the steps load another; or empty.
    """

    lines: tuple[str, ...]
    sees: tuple[str, ...]
    of_output: bool = False
    alias: str = ""


def suggest(case: Case, missed: Mapping[str, Mutant], shrunk: Shrunk) -> tuple[Suggestion, ...]:
    """The fewest candidates that see what any of them sees, those that see most first."""
    found = candidates_for(case, shrunk)
    of_steps = _usable(case, [c for c in found if not c.of_output])
    of_outputs = [c for c in found if c.of_output and try_case(_with(case, [c])[0]).level is None]
    usable = [*of_steps, *of_outputs]
    seen = {what: _seeing(mutant.case, of_steps) for what, mutant in missed.items()}
    for what in [what for what, keys in seen.items() if not keys]:
        seen[what] = {c.key for c in of_outputs if try_case(_with(missed[what].case, [c])[0]).level is not None}
    general = [c for c in usable if c.cost < LAST]
    chosen, left = _cover(general, seen)
    others, _ = _cover([c for c in usable if c not in general], left)
    return tuple(
        Suggestion(
            tuple(map(show, c.told or c.steps)), sees, c.of_output, case.default_alias if needs_alias(case, [c]) else ""
        )
        for c, sees in (*chosen, *others)
    )


def _cover(
    candidates: Sequence[AssertCandidate], seen: Mapping[str, set[str]]
) -> tuple[list[tuple[AssertCandidate, tuple[str, ...]]], Mapping[str, set[str]]]:
    """Candidates that together see what any of them sees, each with what it is the first to see; and what is left."""
    keys = {c.key for c in candidates}
    chosen: list[tuple[AssertCandidate, tuple[str, ...]]] = []
    left = {what: found for what, found in seen.items() if found & keys}
    while left:
        best = max(candidates, key=lambda c: (sum(c.key in found for found in left.values()), -c.cost))
        sees = tuple(what for what, found in left.items() if best.key in found)
        chosen.append((best, sees))
        left = {what: found for what, found in left.items() if what not in sees}
    covered = {what for _, sees in chosen for what in sees}
    return chosen, {what: found for what, found in seen.items() if what not in covered}


def needs_alias(case: Case, candidates: Sequence[AssertCandidate]) -> bool:
    """Whether candidates load another alias, so that an output must say which one it writes."""
    loads = any(ASSERT not in step for c in candidates for step in c.steps)
    return loads and any(not isinstance(o, Mapping) or "alias" not in o for o in case.outputs)


def _with(case: Case, candidates: Sequence[AssertCandidate]) -> tuple[Case, list[int]]:
    """The case with candidates at its end, and which candidate each step after the plan's own belongs to."""
    steps: list[Data] = []
    owners: list[int] = []
    for at, candidate in enumerate(candidates):
        for step in () if candidate.of_output else candidate.steps:
            if step not in steps:
                steps.append(step)
                owners.append(at)
    made = case._replace(steps=(*case.steps, *steps))
    asserts = [step for candidate in candidates if candidate.of_output for step in candidate.steps]
    if asserts:
        written = ({"path": o} if isinstance(o, str) else o for o in made.outputs)
        made = made._replace(outputs=tuple({**o, "asserts": [*o.get("asserts", ()), *asserts]} for o in written))
    alias = case.default_alias
    if alias and needs_alias(case, candidates):
        outputs = ({"path": o} if isinstance(o, str) else o for o in made.outputs)
        made = made._replace(outputs=tuple({"alias": alias, **o} for o in outputs))
    return made, owners


def _usable(case: Case, candidates: list[AssertCandidate]) -> list[AssertCandidate]:
    """Those that the right plan passes."""
    for _ in range(ROUNDS):
        tried, owners = _with(case, candidates)
        outcome = try_case(tried)
        if outcome.level is None:
            return candidates
        wrong = _named(outcome, case, owners)
        if not wrong:
            break
        candidates = [c for at, c in enumerate(candidates) if at not in wrong]
    return [c for c in candidates if try_case(_with(case, [c])[0]).level is None]


def _seeing(case: Case, candidates: list[AssertCandidate]) -> set[str]:
    """The candidates that stop a case which passes without them."""
    tried, owners = _with(case, candidates)
    return {candidates[at].key for at in _named(try_case(tried), case, owners)}


def _named(outcome: TrialOutcome, case: Case, owners: list[int]) -> set[int]:
    if outcome.level is None:  # it passed: its notes stop nothing
        return set()
    own = len(case.steps)
    return {owners[step - own] for step in outcome.steps if own <= step < own + len(owners)}
