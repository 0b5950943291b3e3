"""docs/audit.md says what is so: its first table whole, of the second some rows (`make audit` writes all of them)."""

from __future__ import annotations

import re

import pytest

from brainsurgery_jax.auditing.audit import MUTATORS
from brainsurgery_jax.plan.recipes import recipe_names
from tests.auditing.forty_three import table
from tests.auditing.sweep import Row, sweep, total
from tests.auditing.write import PAGE, between

QUICK = ("bulk-regex", "merge-ties", "rome", "tuned-lens")
TEXT = PAGE.read_text(encoding="utf-8")


def rows(column: str) -> dict[str, Row]:
    """The rows of the table with this first column."""
    body = between(TEXT, "sweep").partition(f"| {column} |")[2].partition("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in body.splitlines()[2:]]
    return {name: Row(*map(int, numbers)) for name, *numbers in lines}


def test_the_forty_three_errors_are_those_of_the_table():
    assert between(TEXT, "forty-three") == table()


@pytest.mark.parametrize("name", QUICK)
def test_the_row_of_a_plan_is_what_an_audit_finds(name: str):
    assert total(sweep(name).values()) == rows("plan")[name]


def test_every_plan_that_writes_something_and_every_class_has_a_row():
    assert set(rows("plan")) - {"**all**"} == set(recipe_names()) - {"diff-check"}
    assert set(rows("class")) - {"**all**"} <= {mutator.kind for mutator in MUTATORS}


@pytest.mark.parametrize("column", ["plan", "class"])
def test_the_sums_are_those_of_the_rows(column: str):
    found = rows(column)
    everything = found.pop("**all**")
    assert total(found.values()) == everything
    assert everything.alone < everything.plan < everything.suggested <= everything.planted


def test_the_exit_codes_and_options_are_those_of_the_command():
    from typer.testing import CliRunner

    from brainsurgery_jax.cli.app import app

    shown = CliRunner().invoke(app, ["audit", "--help"]).stdout
    options = set(re.findall(r"`(--[a-z-]+)", TEXT)) - {"--fingerprint"}
    assert {o for o in options if o not in shown} == set()
