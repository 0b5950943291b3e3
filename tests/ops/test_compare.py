"""Asserts and reports on values of which numpy warns: the suite makes an error of every warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import plan_of, run_plan

SIGNALLING = np.array([0x7F81, 0], np.uint16).view(ml_dtypes.bfloat16)
INFINITE = np.array([np.inf, -np.inf], np.float32)
HARD = pytest.mark.parametrize("x", [SIGNALLING, INFINITE], ids=["signalling NaN", "infinity"])


def said(folder: Path, tensors: Any, step: Any) -> str:
    """What a report says."""
    (text,) = bs.load(plan_of(folder, tensors, step)).run(durable=False).said
    return text


@HARD
@pytest.mark.parametrize("eps", [{}, {"eps": 1}], ids=["exact", "eps"])
def test_iszero_fails_without_a_warning(tmp_path: Path, x: np.ndarray, eps: dict[str, int]) -> None:
    with pytest.raises(bs.PlanError, match=r"assert\.iszero: 'x' is not"):
        run_plan(tmp_path, {"x": x}, {"assert": {"iszero": {"of": "x"} | eps}})


@pytest.mark.parametrize("eps", [{}, {"eps": 1}], ids=["exact", "eps"])
def test_a_signalling_nan_differs_from_itself_without_a_warning(tmp_path: Path, eps: dict[str, int]) -> None:
    with pytest.raises(bs.PlanError, match=r"assert\.equal: 'x' differs in value"):
        run_plan(tmp_path, {"x": SIGNALLING, "y": SIGNALLING}, {"assert": {"equal": {"left": "x", "right": "y"} | eps}})


@HARD
def test_diff_measures_without_a_warning(tmp_path: Path, x: np.ndarray) -> None:
    pair = {"a": {"x": x}, "b": {"x": x}}
    step = {"diff": {"left": "a::x", "right": "b::x", "eps": 1}}
    assert "'x' differs by inf, more than 1" in said(tmp_path, pair, step)


@HARD
def test_dump_takes_statistics_without_a_warning(tmp_path: Path, x: np.ndarray) -> None:
    assert "nan" in said(tmp_path, {"x": x}, {"dump": {"verbosity": "stat"}}).lower()


FLOATS = [ml_dtypes.bfloat16, np.float16, np.float32, np.float64, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [([0.0, 1], [-0.0, 1], True), ([np.nan], [np.nan], False), ([np.inf], [np.inf], True), ([1, 2], [1, -2], False)],
    ids=["zeros of both signs", "NaN", "infinity", "another sign"],
)
def test_equality_is_that_of_values_not_of_bits(tmp_path: Path, dtype: Any, left: Any, right: Any, equal: bool) -> None:
    pair = {"a": {"x": np.array(left, dtype)}, "b": {"x": np.array(right, dtype)}}
    assert ("no difference" in said(tmp_path, pair, {"diff": {"left": "a::x", "right": "b::x"}})) is equal


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("values", "zero"), [([0.0, -0.0], True), ([np.nan], False), ([2.0**-14], False)])
def test_iszero_takes_zeros_of_both_signs_and_no_nan(tmp_path: Path, dtype: Any, values: Any, zero: bool) -> None:
    step = {"assert": {"iszero": {"of": "x"}}} if zero else {"assert": {"not": {"iszero": {"of": "x"}}}}
    run_plan(tmp_path, {"x": np.array(values, dtype)}, step)
