"""Asserts and reports on values of which numpy warns: the suite makes an error of every warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import counting, normal, plan_of, run_plan, set_block

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


# --- Counts, places and figures ---------------------------------------------------------------------------------------


def failing(folder: Path, tensors: Any, condition: Any) -> str:
    """Why an assert fails."""
    with pytest.raises(bs.PlanError) as caught:
        run_plan(folder, tensors, {"assert": condition})
    (error,) = caught.value.diagnostics
    return error.message


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_first_value_that_is_not_finite_is_found_in_any_block(
    tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_block(monkeypatch, 8, 8)
    x = np.zeros((7, 5), dtype)
    x[4, 3], x[5, 0], x[6, 4] = np.inf, np.nan, -np.inf
    assert "'x' has 3 values that are not finite, first at [4, 3]" in failing(tmp_path, {"x": x}, {"finite": "x"})


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_finite_values_are_finite(tmp_path: Path, dtype: Any) -> None:
    most = ml_dtypes.finfo(dtype).max
    run_plan(tmp_path, {"x": np.array([most, -most, 0], dtype)}, {"assert": {"finite": "x"}})


def test_the_worst_of_all_blocks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, 8, 8)
    x = counting((6, 5))
    y = x.copy()
    y[1, 1], y[4, 2], y[5, 4] = 6.5, 32, 29.25
    why = failing(tmp_path, {"x": x, "y": y}, {"close": {"left": "x", "right": "y", "atol": 1e-3}})
    assert "'x' has 3 values that are not close (rtol 1e-05, atol 0.001), the worst at [4, 2]: 22 against 32" in why


@pytest.mark.parametrize(
    ("left", "right", "close"),
    [(1.0, 1.0 + 9e-6, True), (1.0, 1.0 + 2e-5, False), (np.inf, np.inf, True), (np.inf, -np.inf, False),
     (1.0, np.inf, False), (np.inf, 1.0, False), (np.nan, np.nan, False), (0.0, 9e-9, True), (0.0, -2e-8, False)],
)  # fmt: skip
def test_closeness_is_that_of_numpy(tmp_path: Path, left: float, right: float, close: bool) -> None:
    assert np.isclose(left, right) == close
    condition = {"close": {"left": "x", "right": "y"}}
    step = {"assert": condition if close else {"not": condition}}
    run_plan(tmp_path, {"x": np.array([left]), "y": np.array([right])}, step)


def test_one_dtype_may_be_close_to_another(tmp_path: Path) -> None:
    x = normal((50,))
    step = {"assert": {"close": {"left": "x", "right": "y", "rtol": 2**-8}}}
    run_plan(tmp_path, {"x": x, "y": x.astype(ml_dtypes.bfloat16)}, step)


@pytest.mark.parametrize("dtype", [*FLOATS, np.complex64, np.int16])
@pytest.mark.parametrize("kind", ["fro", "max"])
def test_norms_are_those_of_numpy_in_double_precision(tmp_path: Path, dtype: Any, kind: str) -> None:
    x = (3 * normal((40, 30))).astype(dtype)
    wide = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    wanted = float(np.linalg.norm(wide) if kind == "fro" else np.abs(wide).max())
    run_plan(tmp_path, {"x": x}, {"assert": {"norm": {"of": "x", "ord": kind, "is": wanted, "eps": 1e-9 * wanted}}})


@pytest.mark.parametrize("given", [{"equal": {"eps": 2}}, {"close": {"atol": 2, "rtol": 0}}])
def test_integers_that_are_the_same_double_are_not_the_same(tmp_path: Path, given: dict[str, Any]) -> None:
    x = np.array([2**55, 5])
    ((name, wishes),) = given.items()
    step = {name: {"left": "x", "right": "y"} | wishes}
    run_plan(tmp_path, {"x": x, "y": x + 2}, {"assert": step})
    assert re.search(r"the largest is 3$|36028797018963968 against 36028797018963971$", failing(
        tmp_path, {"x": x, "y": x + 3}, step
    ))  # fmt: skip


def test_what_exceeds_eps_is_told_by_how_much(tmp_path: Path) -> None:
    x = counting((3, 4))
    pair = {"x": x, "y": x + np.float32(0.25)}
    assert "by more than 0.1, the largest is 0.25" in failing(
        tmp_path, pair, {"equal": {"left": "x", "right": "y", "eps": 0.1}}
    )
    assert "not within 2 of zero everywhere, the largest is 11" in failing(
        tmp_path, pair, {"iszero": {"of": "x", "eps": 2}}
    )


def test_asserts_on_names_hold_trees_against_what_came_in() -> None:
    tree = {"h": {"w": np.ones(3, np.float32), "b": np.ones(3, np.float32)}}
    steps = [
        {"scale_": {"target": r"h\.w", "by": 2}},
        {"assert": {"unchanged": {"except": r"h\.w"}}},
        {"assert": {"same_names": {"left": r"h\..", "right": ".*"}}},
    ]
    assert bs.load({"transforms": steps}).apply(tree)["h"]["w"].tolist() == [2, 2, 2]
    with pytest.raises(bs.PlanError, match=r"assert\.unchanged: 'h\.w' is not as it came in"):
        bs.load({"transforms": [*steps, {"assert": {"unchanged": {}}}]}).apply(tree)


def test_several_tensors_may_be_compared_with_one(tmp_path: Path) -> None:
    tensors = {"a": counting((3,)), "b": counting((3,)), "c": counting((3,))}
    run_plan(tmp_path, tensors, {"assert": {"equal": {"left": "[ab]", "right": "c"}}})
