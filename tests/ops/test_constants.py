"""Constants are what their dtype holds, or are refused: by `fill` and `pad` alike, and at the ends of each dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import problems, run_plan

TENSORS = {
    "i": np.arange(3, dtype=np.int32), "l": np.arange(3), "u": np.arange(3, dtype=np.uint64),
    "p": np.array([True, False, True]), "h": np.arange(3, dtype=np.float16), "f": np.arange(3, dtype=np.float32),
}  # fmt: skip


def steps(name: str, value: Any) -> list[dict[str, Any]]:
    """The steps that put a value into a tensor."""
    return [
        {"fill_": {"target": name, "mode": "constant", "value": value}},
        {"fill_": {"target": name, "mode": "tensor", "values": [value]}},
        {"pad_": {"target": name, "width": [[1, 0]], "value": value}},
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("name", "value", "code", "said"), [
    ("i", 0.5, "inexact", "0.5 is not an integer, but the tensor is int32"),
    ("i", -1e-30, "inexact", "-1e-30 is not an integer"),
    ("i", 2**31, "fill-range", "does not fit int32"),
    ("l", 2.0**63, "fill-range", "does not fit int64"),  # which numpy takes for the largest int64
    ("u", 2.0**64, "fill-range", "does not fit uint64"),
    ("p", 0.5, "inexact", "0.5 is neither 0 nor 1, but the tensor is bool"),
    ("p", 2, "inexact", "2 is neither 0 nor 1"),
    ("h", 1e-9, "fill-range", "1e-09 is too small for float16, and would be 0"),
    ("f", 1e-60, "fill-range", "1e-60 is too small for float32"),
    ("f", 1e60, "fill-range", "too large for float32"),
])  # fmt: skip
def test_a_value_that_the_dtype_does_not_hold_is_refused(
    number: int, name: str, value: float, code: str, said: str, tmp_path: Path
) -> None:
    (found,) = problems(tmp_path, TENSORS, steps(name, value)[number])
    assert (found.code, found.severity) == (code, "error")
    assert said in found.message
    assert found.hint


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("name", "value"), [
    ("i", 2.0), ("i", -(2**31)), ("l", 2**62), ("u", 2.0**63), ("p", 0), ("p", 1.0), ("h", 0.1), ("h", 6e-8),
    ("f", 0.1), ("f", 0), ("f", float("nan")), ("f", float("-inf")),
])  # fmt: skip
def test_a_value_that_the_dtype_holds_is_rounded_at_most(number: int, name: str, value: float, tmp_path: Path) -> None:
    found = run_plan(tmp_path, TENSORS, steps(name, value)[number])[name][:1]
    assert found.tobytes() == np.array([value]).astype(TENSORS[name].dtype).tobytes()


@pytest.mark.parametrize("step", [
    *(steps("l", 2**53 + 1)[number] for number in (0, 2)), {"clamp_": {"target": "l", "max": 2**53 + 1}},
    {"scale_": {"target": "l", "by": -(2**60) - 1}},
])  # fmt: skip
def test_an_integer_whose_last_digit_would_be_lost_is_refused(step: dict[str, Any], tmp_path: Path) -> None:
    (found,) = problems(tmp_path, TENSORS, step)
    assert found.code == "value-type"
    assert "has too many digits" in found.message


def test_values_of_a_table_keep_every_digit(tmp_path: Path) -> None:
    step = {"fill_": {"target": "l", "mode": "tensor", "values": [2**53 + 1, 2**63 - 1, -(2**63)]}}
    assert run_plan(tmp_path, TENSORS, step)["l"].tolist() == [2**53 + 1, 2**63 - 1, -(2**63)]
