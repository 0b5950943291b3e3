"""The worked plans see at least 36 of 43 planted errors by themselves, and none where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

import brainsurgery_jax as bs
from tests.auditing.forty_three import ERRORS, load_plan, settings_of, try_error


@pytest.mark.parametrize("name", ERRORS)
def test_what_sees_a_planted_error_is_what_the_table_says(name: str, tmp_path: Path):
    assert try_error(name, tmp_path) == ERRORS[name].seen


TRUE_OF = {"head_pruning": {"structure-prune", "config-differs"}}
"""Notes about what a plan does, right as it is: the class of GPT-2 cannot load other widths of heads."""


@pytest.mark.parametrize("plan", sorted({error.plan for error in ERRORS.values()}))
def test_the_right_plan_raises_no_alarm(plan: str, tmp_path: Path):
    right = load_plan(plan, settings_of(plan, tmp_path))
    assert {note.code for note in bs.check(right)} == TRUE_OF.get(plan, set())
    assert right.run(durable=False).published


def test_at_least_36_of_43_are_seen():
    assert len(ERRORS) == 43
    assert sum(1 for error in ERRORS.values() if error.seen) >= 36
