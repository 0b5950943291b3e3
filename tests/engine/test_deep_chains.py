"""Thousands of steps on one tensor: what plans them does not go down step by step into the stack of Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import counting, run_plan

STEPS = 1500


def permutes(number: int) -> list[dict[str, Any]]:
    return [{"permute": {"from": f"w.{number}", "to": f"w.{number + 1}", "order": [1, 0]}}]


def permutes_and_scales(number: int) -> list[dict[str, Any]]:
    return [*permutes(number), {"scale_": {"target": f"w.{number + 1}", "by": -1}}]


@pytest.mark.parametrize("steps", [permutes, permutes_and_scales])
def test_a_tensor_may_be_permuted_some_thousand_times(steps: Any, tmp_path: Path):
    plan = [step for number in range(STEPS) for step in steps(number)]
    found = run_plan(tmp_path, {"w.0": counting((2, 3))}, [*plan, {"delete": {"target": rf"w\.(?!{STEPS}$)\d+"}}])
    assert found.keys() == {f"w.{STEPS}"}
    np.testing.assert_array_equal(found[f"w.{STEPS}"], counting((2, 3)))
