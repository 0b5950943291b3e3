"""A message about an assert points at the condition that it is about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests import checkpoints

ALONE = """\
  - assert:
      exists: nope
"""
PART = """\
  - assert:
      all:
        - exists: a
        - shape: {of: a, is: [3]}
"""
TWICE = """\
  - assert:
      all:
        - equal:
            left: a
            right: b
        - equal:
            left: zz::a
            right: b
"""
NESTED = """\
  - assert:
      not:
        any:
          - equal: {left: a, right: b}
          - equal: {left: zz::a, right: b}
"""
VALUES = """\
  - assert:
      equal:
        left: a
        right: b
"""


@pytest.mark.parametrize(("steps", "place"), [
    ("  - assert: {exists: nope}\n", ":3:5:"), (ALONE, ":4:7:"), (PART, ":6:11:"), (TWICE, ":9:19:"),
    (NESTED, ":7:27:"), (VALUES, ":4:7:"),
])  # fmt: skip
def test_a_message_points_at_its_condition(steps: str, place: str, tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "m.safetensors", {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)})
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"inputs: [{tmp_path}/m.safetensors]\ntransforms:\n{steps}output: {tmp_path}/out.safetensors\n")
    with pytest.raises(PlanError) as refused:
        bs.load(plan).run(durable=False)
    assert f"plan.yaml{place}" in str(refused.value)
