"""Contractions: any equation gives what numpy gives, by either way of computing it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.checkpoints import normal, run_plan, same

EQUATIONS = [
    "ij,jk->ik", "ij,kj->ki", "ij,ij->ij", "ij,ij->", "ij,j->i", "i,j->ji", "bij,bjk->bik", "bij,bkj->ik",
    "abc,cd->dab", "ii,ij->j", "ij,->ji",
]  # fmt: skip
SINGLE = ["ij->ji", "ij->i", "ij->", "ii->i", "ii->", "abc->cab"]
SIZES = dict(zip("abcdijk", (2, 3, 4, 5, 6, 4, 3), strict=True))


def operand(term: str, seed: int, dtype: type = np.float32) -> np.ndarray:
    return normal([SIZES[letter] for letter in term], dtype, seed=seed)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_two_tensors_are_contracted_as_numpy_does(equation: str, tmp_path: Path) -> None:
    left, right = equation.split("->")[0].split(",")
    tensors = {"a": operand(left, 1), "b": operand(right, 2)}
    step = {"einsum": {"from_a": "a", "from_b": "b", "to": "c", "equation": equation}}
    exact = np.einsum(equation, *(x.astype(np.float64) for x in tensors.values()))
    np.testing.assert_allclose(run_plan(tmp_path, tensors, step)["c"], exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("equation", SINGLE)
def test_the_axes_of_one_tensor_are_reordered_summed_or_walked_together(equation: str, tmp_path: Path) -> None:
    x = operand(equation.split("->")[0], 1)
    found = run_plan(tmp_path, {"a": x}, {"einsum": {"from_a": "a", "to": "c", "equation": equation}})
    np.testing.assert_allclose(found["c"], np.einsum(equation, x.astype(np.float64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("equation", ["ij,jk->ik", "bij,bjk->bik"])
def test_small_floats_are_rounded_once(dtype: type, equation: str, tmp_path: Path) -> None:
    left, right = equation.split("->")[0].split(",")
    tensors = {"a": np.round(operand(left, 1) * 8).astype(dtype), "b": np.round(operand(right, 2) * 8).astype(dtype)}
    step = {"einsum": {"from_a": "a", "from_b": "b", "to": "c", "equation": equation}}
    exact = np.einsum(equation, *(x.astype(np.float64) for x in tensors.values()))  # whole numbers: float32 is exact
    assert same(run_plan(tmp_path, tensors, step)["c"], exact.astype(np.float32).astype(dtype))


def test_one_step_folds_every_adapter(tmp_path: Path) -> None:
    tensors = {f"h.{i}.{n}": normal((4, 2) if n == "B" else (2, 5), seed=i) for i in range(3) for n in "AB"}
    step = {"einsum": {"from_a": r"(.*)\.B", "from_b": r"\1.A", "to": r"\1.w", "equation": "or,ri->oi"}}
    made = run_plan(tmp_path, tensors, step)
    for i in range(3):
        np.testing.assert_allclose(made[f"h.{i}.w"], tensors[f"h.{i}.B"] @ tensors[f"h.{i}.A"], rtol=1e-5)


def test_one_tensor_may_serve_all_matches(tmp_path: Path) -> None:
    tensors = {"h.0": normal((3, 4)), "h.1": normal((3, 4), seed=1), "r": normal((4,), seed=2)}
    step = {"einsum": {"from_a": r"h\.(\d)", "from_b": "r", "to": r"x.\1", "equation": "oi,i->o"}}
    made = run_plan(tmp_path, tensors, step)
    np.testing.assert_allclose(made["x.1"], tensors["h.1"] @ tensors["r"], rtol=1e-5)
