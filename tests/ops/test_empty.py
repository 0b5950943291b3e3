"""Expressions over tensors without elements: what scipy and numpy give, or a refusal that says what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special

import brainsurgery_jax as bs
from brainsurgery_jax.expression.functions import REDUCTIONS
from tests.checkpoints import problems, run_plan

EMPTY = {"e": np.zeros((0, 4), np.float32)}
PICKING = ("min", "max", "median", "quantile", "kth_largest", "argmax", "argmin")
ORACLES: dict[str, Any] = {
    **{name: getattr(np, name) for name in ("sum", "prod", "any", "all", "mean", "std", "var")},
    "norm": np.linalg.norm,
    # scipy 1.17 fails on empty matrices without an axis.
    "logsumexp": lambda x, axis: scipy.special.logsumexp(x.ravel() if axis is None else x, axis=axis),
}  # fmt: skip


def step(expr: str) -> dict[str, Any]:
    return {"compute": {"from": {"e": "e"}, "expr": expr, "to": "out", "dtype": "float64"}}


def call(name: str, axis: str) -> str:
    return f"{name}(e{', 1' if name in ('quantile', 'kth_largest') else ''}{axis})"


def test_every_reduction_is_tried_below() -> None:
    assert {*PICKING, *ORACLES} == {*REDUCTIONS, "argmax", "argmin"}


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.filterwarnings("ignore")  # numpy's of means of nothing
def test_a_reduction_of_no_elements_is_that_of_numpy(name: str, axis: int | None, tmp_path: Path) -> None:
    found = run_plan(tmp_path, EMPTY, step(f"{name}(e, axis={axis})"))["out"]
    np.testing.assert_array_equal(found, np.float64(ORACLES[name](EMPTY["e"], axis=axis)))


@pytest.mark.parametrize("axis", ["", ", axis=0"])
@pytest.mark.parametrize("name", [*PICKING, "topk", "argtopk", "take"])
def test_what_picks_an_element_is_refused_by_the_check_where_there_is_none(
    name: str, axis: str, tmp_path: Path
) -> None:
    expr = call(name, axis) if name in PICKING else f"{name}(e, 1, axis=0)"
    (error,) = problems(tmp_path, EMPTY, step(expr))
    assert error.code == "expression-value"
    assert f"'{expr}' of f32[0,4]: there are no elements to take the " in error.message


@pytest.mark.parametrize("name", PICKING)
def test_an_axis_that_a_number_does_not_have_is_told_of_in_any_case(name: str, tmp_path: Path) -> None:
    (error,) = problems(tmp_path, {"e": np.zeros((), np.float32)}, step(call(name, ", axis=0")))
    assert "axis 0 is out of bounds for array of dimension 0" in error.message


@pytest.mark.parametrize("name", ["topk", "argtopk"])
def test_the_largest_along_an_axis_that_is_not_there_are_refused(name: str, tmp_path: Path) -> None:
    (error,) = problems(tmp_path, EMPTY, step(f"{name}(e, 1, axis=-3)"))
    assert "axis -3 is out of bounds for array of dimension 2" in error.message


@pytest.mark.parametrize("name", PICKING)
def test_what_picks_an_element_of_each_of_no_rows_has_no_result(name: str, tmp_path: Path) -> None:
    assert run_plan(tmp_path, EMPTY, step(call(name, ", axis=1")))["out"].shape == (0,)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["softmax", "sort", "argsort", "ranks", "cumsum", "flip"])
def test_what_keeps_the_shape_keeps_that_of_no_elements(name: str, axis: int, tmp_path: Path) -> None:
    assert run_plan(tmp_path, EMPTY, step(f"{name}(e, axis={axis})"))["out"].shape == (0, 4)


@pytest.mark.parametrize("expr", ["logsumexp(e, axis=0)", "softmax(e, axis=0)", "kth_largest(e, 1, axis=1)"])
def test_under_jit_the_results_are_the_same(expr: str, tmp_path: Path) -> None:
    found = jax.jit(bs.load({"transforms": [step(expr)]}).apply)(EMPTY)["out"]
    np.testing.assert_array_equal(found, run_plan(tmp_path, EMPTY, step(expr))["out"])
