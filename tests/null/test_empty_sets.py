"""What is said of no tensor at all: a report refuses, an assert does not hold, and what asks for emptiness does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import write
from tests.null.world import Headers, complaints, found

LACKING: dict[str, Any] = {
    "iszero": "m::bb",
    "finite": "m::bb",
    "norm": {"of": "m::bb", "ge": 0},
    "shape": {"of": "m::bb", "is": [3]},
    "dimensions": {"of": "m::bb", "ge": 0},
    "dtype": {"of": "m::bb", "is": "float32"},
    "reads": {"of": "m::bb", "ge": 0},
    "writes": {"of": "m::bb", "ge": 0},
    "equal": {"left": "m::bb", "right": r"m::\g<0>"},
    "close": {"left": "m::bb", "right": r"m::\g<0>"},
    "identical": {"left": "m::bb", "right": r"m::\g<0>"},
    "same_names": {"left": "m::bb", "right": "m::bb"},
    "unchanged": {"of": "m::bb"},
}


@pytest.mark.parametrize("operator", LACKING)
def test_an_assert_about_no_tensor_does_not_hold(operator: str):
    (problem,) = found({"assert": {operator: LACKING[operator]}})
    assert (problem.code, problem.severity) == ("no-match", "error")
    assert "Did you mean 'b'?" in problem.message or operator == "same_names"


@pytest.mark.parametrize("operator", LACKING)
def test_its_negation_holds_with_a_note(operator: str):
    (note,) = found({"assert": {"not": {operator: LACKING[operator]}}})
    assert (note.code, note.severity) == ("no-match", "note")
    assert "holds only since no tensor matches" in note.message


@pytest.mark.parametrize(
    "asked", [{"count": {"of": "m::bb", "is": 0}}, {"not": {"exists": "m::bb"}}, {"unchanged": {"except": "m::bb"}}]
)
def test_what_asks_for_emptiness_holds_without_a_word(asked: Any):
    assert found({"assert": asked}) == ()


def test_nothing_is_unchanged_where_nothing_came_in():
    made = {"prefixes": {"mode": "add", "alias": "z"}}
    assert complaints(made, {"assert": {"unchanged": {}}}, world=Headers({}), inputs=()) == ["no-match"]


@pytest.mark.parametrize(
    "report",
    [
        {"dump": {"target": "m::bb"}},
        {"diff": {"left": "m::bb", "right": "m::bc"}},
        {"diff": {"mode": "aliases", "left_alias": "x", "right_alias": "y"}},
    ],
)
def test_a_report_on_no_tensor_is_a_mistake(report: Any):
    empty = [{"prefixes": {"mode": "add", "alias": alias}} for alias in "xy"]
    assert complaints(*empty, report) == ["no-match"]


def test_a_report_on_no_tensor_is_left_out_where_the_plan_allows_it():
    assert found({"diff": {"left": "m::bb", "right": "m::bc", "if_missing": "skip"}}) == ()


def test_a_pattern_that_ends_in_a_group_has_no_suggestion_that_is_no_regex(tmp_path: Path):
    write(tmp_path / "m.safetensors", {"layers.2.mlp.experts.3.gate_proj.weight": np.zeros(2, np.float32)})
    pattern = r".+\.(foo|experts\.(?!.*(gate|up|down)_proj\.weight).+)"
    plan = {"inputs": [f"m::{tmp_path}/m.safetensors"], "transforms": [{"delete": {"target": pattern}}]}
    assert [d.code for d in bs.check(bs.load(plan))] == ["no-match"]
