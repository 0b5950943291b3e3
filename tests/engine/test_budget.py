"""Memory is a budget: refused with both figures when one task needs more, and what is read twice is read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, plan_of


def test_a_task_larger_than_the_budget_is_refused_with_both_figures_before_anything_is_read(tmp_path: Path):
    plan = plan_of(tmp_path, {"w": normal((300, 300))}, {"phlora_": {"target": "w", "rank": 2}})
    files = Files()
    with pytest.raises(bs.PlanError, match=r"needs .* MB of memory, the budget is 100\.0 KB"):
        bs.load(plan).run(memory=100 << 10, world=files)
    assert files.bytes_read == 0
    assert not Path(plan["output"]["path"]).exists()


def test_the_budget_changes_no_bit(tmp_path: Path):
    steps = [{"scale_": {"target": "w", "by": 0.3}}, {"add": {"from_a": "w", "from_b": "v", "to": "v"}}]
    plan = plan_of(tmp_path, {"w": normal((2000, 1000)), "v": normal((2000, 1000), seed=1)}, steps)
    written = []
    for memory in (40 << 20, 1 << 30):
        bs.load(plan).run(memory=memory, durable=False, overwrite=True)
        written.append(Path(plan["output"]["path"]).read_bytes())
    assert written[0] == written[1]


def test_a_tensor_that_an_assert_and_an_output_need_is_read_once(tmp_path: Path):
    w = np.ones((1 << 20) + 7, np.float32)
    steps = [
        {"assert": {"not": {"iszero": "w"}}},
        {"scale_": {"target": "w", "by": 0.5}},
        {"dump": {"verbosity": "stat"}},
    ]
    files = Files()
    bs.load(plan_of(tmp_path, {"w": w}, steps)).run(durable=False, world=files)
    assert files.bytes_read == w.nbytes


def test_a_question_and_an_output_of_one_tensor_are_projected_together(tmp_path: Path):
    w = {"w": normal((1000, 100))}
    scale = {"scale_": {"target": "w", "by": 0.5}}
    ask = {"assert": {"not": {"iszero": {"of": "w", "eps": 1e-3}}}}
    alone, both = (bs.load(plan_of(tmp_path, w, steps)).explain().peak for steps in ([scale], [ask, scale]))
    assert both > alone
