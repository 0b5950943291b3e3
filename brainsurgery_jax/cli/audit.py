"""`audit`: what sees errors in a plan, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from brainsurgery_jax import api
from brainsurgery_jax.auditing.audit import audit as find
from brainsurgery_jax.cli import show
from brainsurgery_jax.rendering.data import record_data
from brainsurgery_jax.reports.audit import report_audit

ENOUGH, TOO_FEW = range(2)


class AuditChoices(NamedTuple):
    """The options of `audit`."""

    each: int = 3
    suggestions: bool = True
    at_least: float | None = None
    verbose: bool = False


def audit(items: Sequence[str], choices: AuditChoices, *, json: bool) -> int:
    """Print what an audit found. Returns the exit code: 1 if a smaller share of errors was seen than asked for."""
    found = find(api.load(*items), each=choices.each, suggestions=choices.suggestions)
    report = report_audit(found, verbose=choices.verbose)
    total = len(found.seen) + len(found.missed)
    few = choices.at_least is not None and len(found.seen) < choices.at_least * total
    if json:
        show.json(**record_data(report))
    else:
        show.report(report)
    return TOO_FEW if few else ENOUGH
