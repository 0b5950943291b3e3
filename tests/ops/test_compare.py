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
