"""`explain CODE`: what a diagnostic means."""

from __future__ import annotations

from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.rendering.data import record_data
from brainsurgery_jax.reports.codes import code_pages, report_code


def explain_code(code: str, *, json: bool) -> None:
    """Print the page of a code."""
    report = report_code(code)
    if json:
        show.json(**record_data(report))
    else:
        show.report(report)


def describe_absence(word: str) -> str:
    """That a word is neither a plan nor a code, and which code is near."""
    return f"'{word}' is neither a plan (.yaml or .yml) nor the code of a diagnostic.{did_you_mean(word, code_pages())}"
