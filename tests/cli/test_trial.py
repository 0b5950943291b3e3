"""A plan tried aside: the state after its steps is written, and nothing that the plan itself would write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import brainsurgery_jax as bs
from brainsurgery_jax.trial import try_plan
from tests.checkpoints import write

PLAN = """\
inputs: [model.safetensors]
transforms:
- scale_: {target: w, by: 2}
- save: saved.safetensors
- scale_: {target: w, by: 3}
output: model.safetensors
"""


@pytest.fixture
def plan(here: Path) -> bs.Plan:
    write(here / "model.safetensors", {"w": np.arange(4, dtype="f4"), "v": np.ones(2, "f4")})
    (here / "plan.yaml").write_text(PLAN)
    return bs.load("plan.yaml")


@pytest.mark.parametrize(("steps", "factor"), [(1, 2), (2, 2), (3, 6), (None, 6)])
def test_the_state_after_a_step_is_written_and_nothing_else(plan: bs.Plan, steps: int | None, factor: int):
    before = Path("model.safetensors").read_bytes()
    report = try_plan(plan, "tried.safetensors", steps=steps)
    assert report.published == (("tried.safetensors", 24, 2),)
    np.testing.assert_array_equal(load_file("tried.safetensors")["w"], factor * np.arange(4, dtype="f4"))
    assert Path("model.safetensors").read_bytes() == before
    assert not Path("saved.safetensors").exists()


def test_what_was_tried_before_is_replaced(plan: bs.Plan):
    try_plan(plan, "tried.safetensors", steps=1)
    try_plan(plan, "tried.safetensors")
    assert load_file("tried.safetensors")["w"][1] == 6


def test_of_several_outputs_one_may_be_written_alone(plan: bs.Plan):
    report = bs.run(bs.load("plan.yaml", "output=out.safetensors"), only="out.safetensors")
    assert [path for path, _, _ in report.published] == ["out.safetensors"]
    assert not Path("saved.safetensors").exists()


def test_an_output_that_the_plan_does_not_have_cannot_be_the_only_one(plan: bs.Plan):
    with pytest.raises(bs.PlanError, match=r"only='other.safetensors': the plan does not write there, but to: .*out"):
        bs.run(bs.load("plan.yaml", "output=out.safetensors"), only="other.safetensors")
