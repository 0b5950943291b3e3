"""What the matches of a step see of each other: their order, and the tensors that all of them read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import problems, run_plan

ONES = {f"a{i}": np.ones(1, np.float32) for i in range(12)}
MODEL = {name: np.full(2, at + 2, np.float32) for at, name in enumerate(("alpha", "beta", "w"))}


def notes(folder: Path, tensors: dict[str, np.ndarray], step: Any) -> list[str]:
    return [note.hint for note in problems(folder, tensors, step) if note.code == "operand-changed"]


@pytest.mark.parametrize(
    "step",
    [
        {"add_": {"from": r"a(?P<i>\d|10)", "to": "a${i+1}"}},
        {"add_": {"from": r"a(\d|10)", "to": r"a${\1+1}"}},
        {"compute": {"from": {"w": r"a(?P<i>[1-9]|1\d)", "p": "a${i-1}"}, "expr": "w + p"}},
        {"compute": {"from": {"p": r"a(?P<i>\d|10)", "w": "a${i+1}"}, "to": "a${i+1}", "expr": "w + p"}},
    ],
)
def test_matches_that_read_what_others_write_go_by_number(tmp_path: Path, step: Any) -> None:
    done = run_plan(tmp_path, ONES, step)
    assert [done[f"a{i}"].item() for i in range(12)] == np.cumsum(np.ones(12)).tolist()


@pytest.mark.parametrize("name", ["alpha", "w"])
@pytest.mark.parametrize(
    "step",
    [
        {"scale_": {"target": ".*", "by": "model::NAME::[0]"}},
        {"multiply": {"from_a": "(.+)", "from_b": "NAME", "to": r"\1"}},
        {"compute": {"from": {"x": ".*", "s": "NAME"}, "expr": "x * s"}},
    ],
)
def test_a_tensor_that_all_matches_read_is_read_as_before_the_step(tmp_path: Path, step: Any, name: str) -> None:
    ((op, keys),) = step.items()
    named = {k: {n: r.replace("NAME", name) for n, r in v.items()} if isinstance(v, dict) else v.replace("NAME", name)
             for k, v in keys.items()}  # fmt: skip
    done = run_plan(tmp_path, MODEL, {op: named})
    assert {n: x.tolist() for n, x in done.items()} == {n: (x * MODEL[name]).tolist() for n, x in MODEL.items()}


def test_a_number_of_each_match_is_read_as_before_the_step(tmp_path: Path) -> None:
    tensors = {f"{kind}{i}": np.array(i + 2, np.float32) for kind in "sw" for i in range(3)}
    done = run_plan(tmp_path, tensors, {"scale_": {"target": r".(\d)", "by": r"model::s\1"}})
    assert {n: x.item() for n, x in done.items()} == {n: x.item() ** 2 for n, x in tensors.items()}


def test_bounds_from_tensors_are_read_as_before_the_step(tmp_path: Path) -> None:
    tensors = {"a": np.float32(-4), "low": np.float32(-2), "m": np.float32(3), "z": np.float32(1)}
    done = run_plan(tmp_path, tensors, {"clamp_": {"target": ".*", "min": "model::low", "max": "model::z"}})
    assert {n: x.item() for n, x in done.items()} == {n: np.clip(x, -2, 1).item() for n, x in tensors.items()}


def test_a_note_names_the_tensor_that_a_step_changes_and_reads(tmp_path: Path) -> None:
    (hint,) = notes(tmp_path, MODEL, {"scale_": {"target": ".*", "by": "model::alpha::[0]"}})
    assert hint == "If it should stay as it is, narrow the pattern."


def test_the_narrower_pattern_leaves_the_tensor_as_it_is(tmp_path: Path) -> None:
    step = {"scale_": {"target": "beta|w", "by": "model::alpha::[0]"}}
    assert notes(tmp_path, MODEL, step) == []
    done = run_plan(tmp_path, MODEL, step)
    assert {n: x.tolist() for n, x in done.items()} == {"alpha": [2, 2], "beta": [6, 6], "w": [8, 8]}


def test_a_match_that_reads_only_itself_gives_no_note(tmp_path: Path) -> None:
    assert notes(tmp_path, MODEL, {"scale_": {"target": "alpha", "by": "model::alpha::[0]"}}) == []
