"""Quotients and interpolations at their edges: what is exact, what is refused, what is rounded how often."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import FLOATS, INTEGERS, normal, np_dtype, plan_of, run_plan, same

DIVIDE = {"divide_": {"from": "y", "to": "x"}}


def divided(folder: Path, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return run_plan(folder, {"x": x, "y": y}, DIVIDE)["x"]


def mixed(folder: Path, x: np.ndarray, y: np.ndarray, t: float) -> np.ndarray:
    return run_plan(folder, {"x": x, "y": y}, {"lerp_": {"from": "y", "to": "x", "t": t}})["x"]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_of_any_size_are_divided_exactly(dtype: DType, tmp_path: Path) -> None:
    info = np.iinfo(np_dtype(dtype))
    top = int(info.max) // 3 * 3
    x = np.array([top, -top if info.min else top, 0], np_dtype(dtype))
    y = np.array([3, 3, 7], np_dtype(dtype))
    assert divided(tmp_path, x, y).tolist() == [int(a) // int(b) for a, b in zip(x, y, strict=True)]


@pytest.mark.parametrize(("x", "y"), [(7, 2), (7, 0), (0, 0), (-128, -1)])
def test_integers_without_an_exact_quotient_stop_the_run(x: int, y: int, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"x": np.array([6, x], np.int8), "y": np.array([3, y], np.int8)}, DIVIDE)
    with pytest.raises(PlanError, match=r"not exact(.|\n)*`\{name: '.*', kind: float\}` leaves integers"):
        bs.load(plan).run(durable=False)
    assert not Path(plan["output"]["path"]).exists()


def test_the_remedy_for_integers_names_the_earlier_step_that_needs_it_too(tmp_path: Path) -> None:
    """Averaging two models step by step: `kind: float` in the last step alone would leave the integers as sums."""
    save_file({"ids": np.array([1, 2]), "w": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    save_file({"ids": np.array([2, 2]), "w": np.zeros(2, np.float32)}, tmp_path / "b.safetensors")
    text = (
        f"inputs: [a::{tmp_path}/a.safetensors, b::{tmp_path}/b.safetensors]\ntransforms:\n"
        "- add_: {from: 'b::(.*)', to: 'a::\\1'}\n- scale_: {target: 'a::.*', by: 0.5}\n"
        f"output: {{path: {tmp_path}/out.safetensors, alias: a}}\n"
    )
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        bs.load(path).run(durable=False)
    assert "(computed from 'ids')" in str(caught.value)
    assert f"Do the same in the earlier step ({path}:3) that changed the tensor." in str(caught.value)
    mended = text.replace("from: 'b::(.*)'", "from: {alias: b, name: '(.*)', kind: float}").replace(
        "target: 'a::.*'", "target: {alias: a, name: '.*', kind: float}"
    )
    path.write_text(mended)
    bs.load(path).run(durable=False)
    found = load_file(tmp_path / "out.safetensors")
    assert found["ids"].tolist() == [1, 2] and found["w"].tolist() == [0.5, 0.5]


def test_floats_are_divided_by_zero_as_everywhere(tmp_path: Path) -> None:
    found = divided(tmp_path, np.array([1, -1, 0], np.float32), np.zeros(3, np.float32))
    assert same(found, np.array([np.inf, -np.inf, np.nan], np.float32))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quotients_are_rounded_once(dtype: DType, tmp_path: Path) -> None:
    """A quotient in float64 is so much finer that rounding it is rounding the true one (float64 itself aside)."""
    x, y = (np.abs(normal((500,), seed=s)).astype(np_dtype(dtype)) for s in (1, 2))
    with np.errstate(all="ignore"):
        quotient = x.astype(np.float64) / y.astype(np.float64)
        exact = (quotient if dtype.bits >= 32 else quotient.astype(np.float32)).astype(np_dtype(dtype))
    assert same(divided(tmp_path, x, y), exact)


def test_subnormal_quotients_are_kept(tmp_path: Path) -> None:
    tiny = np.array([1e-38, 3e-45], np.float32)
    assert same(divided(tmp_path, tiny, np.array([16, 1], np.float32)), np.array([1e-38 / 16, 3e-45], np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_both_ends_of_an_interpolation_are_exact(dtype: type, tmp_path: Path) -> None:
    x, y = normal((50,), dtype, seed=1), normal((50,), dtype, seed=2)
    assert same(mixed(tmp_path, x, y, 0), x)
    assert same(mixed(tmp_path, x, y, 1), y)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.7, 3.0])
def test_between_equal_values_lies_that_value(t: float, tmp_path: Path) -> None:
    x = normal((50,), seed=1)
    assert same(mixed(tmp_path, x, x, t), x)


@pytest.mark.parametrize("t", [0.31415926, 0.82718281, -0.57721566, 1.61803398])
def test_an_interpolation_is_rounded_once(t: float, tmp_path: Path) -> None:
    x, y = normal((400,), seed=1), normal((400,), seed=2)
    exact = (1 - np.longdouble(t)) * x.astype(np.longdouble) + np.longdouble(t) * y.astype(np.longdouble)
    assert same(mixed(tmp_path, x, y, t), exact.astype(np.float32))
