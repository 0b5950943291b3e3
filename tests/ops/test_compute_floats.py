"""`compute`: what depends on the dtype that a tensor is stored in and on the one that is computed in; derivatives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import read, write

# --- Derivatives ------------------------------------------------------------------------------------------------------

GRADIENTS = {
    "sort": ("sort(w)", lambda x: np.argsort(np.argsort(x)) + 1),
    "sort-of-columns": ("sort(w[:, None], axis=0)[:, 0]", lambda x: np.argsort(np.argsort(x)) + 1),
    "kth_largest": ("kth_largest(w, 2) * ones(4)", lambda x: 10 * (x == np.sort(x)[-2])),
    "pinv": ("pinv(w[:, None])[0]", lambda x: np.arange(1, 5) / (x @ x) - 2 * x * (np.arange(1, 5) @ x) / (x @ x) ** 2),
    "solve": ("solve(diag(w), ones(4))", lambda x: -np.arange(1, 5) / x**2),
}
"""Expressions whose backward pass JAX would compute in float32 and float64 mixed, and their gradients, the elements of
the result weighted by 1, 2, 3 and 4."""


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_right_in_the_default_configuration_of_jax(name: str) -> None:
    expr, gradient = GRADIENTS[name]
    plan = bs.load({"transforms": [{"compute": {"from": {"w": "w"}, "to": "v", "expr": expr}}]})
    w, weights = jnp.asarray([2, -1, 3, 0.5]), jnp.arange(1, 5, dtype=np.float32)
    found = jax.grad(lambda w: weights @ plan.apply({"w": w}, checks="skip")["v"])(w)
    np.testing.assert_allclose(found, gradient(np.asarray(w, np.float64)), rtol=1e-5)


@pytest.mark.parametrize("expr", ["argsort(w) * w", "kth_largest(w, 2) * w", "median(w) * w"])
def test_what_only_finds_places_has_a_forward_mode(expr: str) -> None:
    plan = bs.load({"transforms": [{"compute": {"from": {"w": "w"}, "expr": expr}}]})
    w = jnp.asarray([2, -1, 3, 0.5], np.float32)
    _, change = jax.jvp(lambda w: plan.apply({"w": w})["w"], (w,), (w,))
    _, back = jax.vjp(lambda w: plan.apply({"w": w})["w"], w)
    np.testing.assert_allclose(change.sum(), w @ back(jnp.ones(4, np.float32))[0], rtol=1e-6)


# --- Infinity as the largest number -----------------------------------------------------------------------------------


def by_run(plan: dict[str, Any], w: np.ndarray, tmp_path: Path) -> Any:
    write(tmp_path / "w.safetensors", {"w": w})
    out = str(tmp_path / "o.safetensors")
    bs.load({**plan, "inputs": [str(tmp_path / "w.safetensors")], "output": out}).run(durable=False)
    return read(out)["w"]


MODES: dict[str, Callable[[dict[str, Any], np.ndarray, Path], Any]] = {
    "run": by_run,
    "apply": lambda plan, w, tmp_path: bs.load(plan).apply({"w": w})["w"],
    "jit": lambda plan, w, tmp_path: jax.jit(bs.load(plan).apply)({"w": w})["w"],
    "vmap": lambda plan, w, tmp_path: jax.vmap(bs.load(plan).apply)({"w": w[None]})["w"][0],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e5m2"])
@pytest.mark.parametrize("expr", ["nan_to_num(w)", "nan_to_num(w[::-1] * 2)[::-1] / 2 * 2", "nan_to_num(w + int8(0))"])
def test_infinity_becomes_the_largest_number_of_the_dtype_that_is_stored(
    expr: str, dtype: str, mode: str, tmp_path: Path
) -> None:
    most = float(ml_dtypes.finfo(dtype).max)
    w = np.array([np.inf, -np.inf, np.nan, 0.5, -0.5], dtype)
    found = np.asarray(MODES[mode]({"transforms": [{"compute": {"from": {"w": "w"}, "expr": expr}}]}, w, tmp_path))
    inner = [1, -1] if "* 2" in expr else [0.5, -0.5]
    assert found.astype(np.float64).tolist() == [most, -most, 0, *inner]


def test_a_cast_decides_which_number_is_the_largest() -> None:
    step = {"compute": {"from": {"w": "w"}, "expr": "nan_to_num(float64(w))", "dtype": "float64"}}
    found = bs.load({"transforms": [step]}).apply({"w": np.array([np.inf, 2], np.float32)})["w"]
    assert np.asarray(found).tolist() == [np.finfo(np.float64).max, 2]


@pytest.mark.parametrize(("expr", "wanted"), [
    ("w + float32(1)", [3, 4]), ("maximum(w, float32(2.5))", [2.5, 3]), ("w * int8(2)", [4, 6]),
    ("where(w > float64(2), w, sigmoid(0))", [0.5, 3]),
])  # fmt: skip
def test_numbers_may_be_cast(expr: str, wanted: list[float]) -> None:
    plan = bs.load({"transforms": [{"compute": {"from": {"w": "w"}, "expr": expr}}]})
    for apply in (plan.apply, jax.jit(plan.apply)):
        assert np.asarray(apply({"w": np.array([2, 3], np.float32)})["w"]).tolist() == wanted


@pytest.mark.parametrize(
    "expr", ["median(w, keepdims=True)", "quantile(w, 0.5, keepdims=True)", "max(w, keepdims=True)"]
)
def test_of_a_scalar_no_axis_is_kept(expr: str) -> None:
    found = bs.load({"transforms": [{"compute": {"from": {"w": "w"}, "expr": expr}}]}).apply({"w": np.float32(3)})
    assert np.shape(found["w"]) == ()


def test_integers_have_a_sigmoid() -> None:
    step = {"compute": {"from": {"w": "w"}, "to": "v", "expr": "sigmoid(w)", "dtype": "float32"}}
    found = bs.load({"transforms": [step]}).apply({"w": np.array([0, 2], np.int32)})["v"]
    np.testing.assert_allclose(found, [0.5, 1 / (1 + np.exp(-2))], rtol=1e-6)
