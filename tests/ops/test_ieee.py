"""Every operation is rounded by itself, as IEEE 754 says: in `run`, in `apply`, under `jax.jit` and `jax.vmap`.

XLA rewrites floating-point code (`x / 448` to a product, `(x + 1) - 1` to `x`, `a * b + c` to one rounding). None of
this may reach a plan. The oracle is numpy, one operation after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from math import fsum
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BY_NAME, DType
from brainsurgery_jax.numerics.rounding import cast_to
from tests.checkpoints import np_dtype, run_plan, same

Oracle = Callable[[Any, Any, Any], Any]
"""`(x, y, c)`, where `c` makes a number one of the dtype that is computed in."""

EXACT: dict[str, Oracle] = {
    "x / 448": lambda x, y, c: x / c(448),
    "x / 3 / 7": lambda x, y, c: x / c(3) / c(7),
    "448 / x": lambda x, y, c: c(448) / x,
    "x / y[0]": lambda x, y, c: x / y[0],
    "x * 0.1 * 3": lambda x, y, c: x * c(0.1) * c(3),
    "x + 0.1 + 3": lambda x, y, c: x + c(0.1) + c(3),
    "(x + 1) - 1": lambda x, y, c: (x + c(1)) - c(1),
    "x * 0.1 + 3": lambda x, y, c: x * c(0.1) + c(3),
    "x * y + x": lambda x, y, c: x * y + x,
    "(1 - 0.3) * x + 0.3 * y": lambda x, y, c: c(1 - 0.3) * x + c(0.3) * y,
    "x / y / y": lambda x, y, c: x / y / y,
    "x / (y / x)": lambda x, y, c: x / (y / x),
    "x ** 2": lambda x, y, c: x * x,
    "x ** -1": lambda x, y, c: c(1) / x,
    "abs(x) ** 0.5": lambda x, y, c: np.sqrt(np.abs(x)),
    "1 / sqrt(abs(x))": lambda x, y, c: c(1) / np.sqrt(np.abs(x)),
    "x / sqrt(abs(y))": lambda x, y, c: x / np.sqrt(np.abs(y)),
    "sqrt(abs(x)) * sqrt(abs(x))": lambda x, y, c: np.sqrt(np.abs(x)) * np.sqrt(np.abs(x)),
    "x - x": lambda x, y, c: x - x,
    "x * 0": lambda x, y, c: x * c(0),
    "x + 0": lambda x, y, c: x + c(0),
    "0 - x": lambda x, y, c: c(0) - x,
    "(x > 0) * y": lambda x, y, c: (x > 0).astype(y.dtype) * y,
    "where(x > y, x, y)": lambda x, y, c: np.where(x > y, x, y),
    "clip(x, -0.1, 0.3)": lambda x, y, c: np.clip(x, c(-0.1), c(0.3)),
    "x // 3": lambda x, y, c: x // c(3),
    "x % 3": lambda x, y, c: x % c(3),
    "x // 8": lambda x, y, c: x // c(8),
    "x % 8": lambda x, y, c: x % c(8),
    "x // y": lambda x, y, c: x // y,
    "x % y": lambda x, y, c: x % y,
    "round(x * 10) / 10": lambda x, y, c: np.round(x * c(10)) / c(10),
    "sign(x)": lambda x, y, c: np.sign(x),
    "-x": lambda x, y, c: -x,
    "2.0 ** round(clip(x, -20, 20))": lambda x, y, c: c(2) ** np.round(np.clip(x, c(-20), c(20))),
}
DTYPES = [BY_NAME[n] for n in ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn")]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, 0.5])
"""Subnormal numbers are not among them: compiled code for the CPU takes them for zero, as the documentation says."""


def operands(dtype: DType) -> dict[str, np.ndarray]:
    """Values of many magnitudes, and every special one beside every other."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(20_000) * np.exp2(rng.integers(-8, 9, 20_000))
    x = np.concatenate([base, np.repeat(SPECIAL, 9)])
    y = np.concatenate([np.roll(base, 1)[::-1], np.tile(SPECIAL, 9)])
    return {"x": x.astype(np_dtype(dtype)), "y": y.astype(np_dtype(dtype))}


def wanted(dtype: DType, tensors: dict[str, np.ndarray], oracles: dict[str, Oracle]) -> dict[str, np.ndarray]:
    """What numpy makes of each expression, rounded to the dtype once."""
    wide = np.float64 if dtype.bits == 64 else np.float32
    x, y = (tensors[name].astype(wide) for name in "xy")
    with np.errstate(all="ignore"):
        made = {expr: np.asarray(oracle(x, y, wide)) for expr, oracle in oracles.items()}
        return {expr: cast_to(z, dtype)[0] for expr, z in made.items()}


def steps(exprs: Any) -> list[dict[str, Any]]:
    """A step for each expression, whose result has its text for a name."""
    used = {expr: [n for n in "xy" if n in expr.replace("exp", "").replace("max", "")] for expr in exprs}
    return [
        {"compute": {"from": {n: n for n in used[expr]}, "expr": expr, "to": f"e{at}"}} for at, expr in enumerate(exprs)
    ]


def results(exprs: Any, made: Any) -> dict[str, np.ndarray]:
    return {expr: np.asarray(made[f"e{at}"]) for at, expr in enumerate(exprs)}


def assert_same_bits(found: dict[str, np.ndarray], oracle: dict[str, np.ndarray]) -> None:
    different = {
        expr: int(sum(not same(a, b) for a, b in zip(np.ravel(found[expr]), np.ravel(z), strict=True)))
        for expr, z in oracle.items()
        if not same(found[expr], z)
    }
    assert not different, f"values that differ, of {next(iter(oracle.values())).size}: {different}"


@EACH_DTYPE
def test_a_run_gives_the_bits_of_numpy(dtype: DType, tmp_path: Path) -> None:
    tensors = operands(dtype)
    assert_same_bits(results(EXACT, run_plan(tmp_path, tensors, steps(EXACT))), wanted(dtype, tensors, EXACT))


@EACH_DTYPE
def test_apply_gives_the_bits_of_numpy(dtype: DType) -> None:
    tensors = operands(dtype)
    found = bs.load({"transforms": steps(EXACT)}).apply(tensors)
    assert_same_bits(results(EXACT, found), wanted(dtype, tensors, EXACT))


@EACH_DTYPE
def test_apply_under_jit_gives_the_bits_of_numpy(dtype: DType) -> None:
    tensors = operands(dtype)
    with jax.enable_x64(True):
        found = jax.jit(bs.load({"transforms": steps(EXACT)}).apply)(tensors)
    assert_same_bits(results(EXACT, found), wanted(dtype, tensors, EXACT))


@EACH_DTYPE
def test_apply_under_vmap_gives_the_bits_of_numpy(dtype: DType) -> None:
    tensors = operands(dtype)
    rows = {name: x[:20_000].reshape(4, -1) for name, x in tensors.items()}
    exprs = {expr: oracle for expr, oracle in EXACT.items() if "[" not in expr}
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(bs.load({"transforms": steps(exprs)}).apply))(rows)
    flat = {name: x[:20_000] for name, x in tensors.items()}
    made = {expr: z.reshape(-1) for expr, z in results(exprs, found).items()}
    assert_same_bits(made, wanted(dtype, flat, exprs))


def test_a_run_keeps_subnormal_numbers(tmp_path: Path) -> None:
    tiny = np.exp2(np.random.default_rng(0).uniform(-149, -120, 1000)).astype(np.float32)
    found = run_plan(tmp_path, {"x": tiny, "y": tiny}, steps(["x * 0.5", "x + y", "x / 3"]))
    assert same(found["e0"], tiny * np.float32(0.5))
    assert same(found["e1"], tiny + tiny)
    assert same(found["e2"], tiny / np.float32(3))


LIBRARY: dict[str, Oracle] = {
    "exp(x)": lambda x, y, c: np.exp(x),
    "log(abs(x))": lambda x, y, c: np.log(np.abs(x)),
    "tanh(x)": lambda x, y, c: np.tanh(x),
    "sin(x)": lambda x, y, c: np.sin(x),
    "sigmoid(x)": lambda x, y, c: c(1) / (c(1) + np.exp(-x)),
    "log(exp(x))": lambda x, y, c: np.log(np.exp(x)),
    "exp(x) * exp(-x / 2)": lambda x, y, c: np.exp(x) * np.exp(-x / c(2)),
    "x ** 3": lambda x, y, c: x * x * x,
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_functions_are_the_librarys_and_as_good_under_jit(dtype: DType) -> None:
    """numpy's and XLA's functions differ in the last digits, and so do results; nothing is rewritten around them."""
    tensors = {name: np.clip(x[:2000], -20, 20) for name, x in operands(dtype).items()}
    oracle = wanted(dtype, tensors, LIBRARY)
    plan = bs.load({"transforms": steps(LIBRARY)})
    with jax.enable_x64(True):
        for found in (plan.apply(tensors), jax.jit(plan.apply)(tensors)):
            for expr, z in results(LIBRARY, found).items():
                np.testing.assert_allclose(z, oracle[expr], rtol=20 * np.finfo(z.dtype).eps, atol=1e-6, err_msg=expr)


# --- Sums -------------------------------------------------------------------------------------------------------------


def test_sums_are_kept_in_double_precision_and_rounded_once(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(300_001).astype(np.float32) + np.float32(1000)
    exact = {"sum(x)": fsum(x), "mean(x)": fsum(x) / x.size, "norm(x)": fsum(float(v) ** 2 for v in x) ** 0.5}
    found = results(exact, run_plan(tmp_path, {"x": x}, steps(exact)))
    plan = bs.load({"transforms": steps(exact)})
    traced = results(exact, jax.jit(plan.apply)({"x": x}))
    for expr, value in exact.items():
        assert found[expr] == np.float32(value), expr
        assert traced[expr] == np.float32(value), expr


def test_a_norm_of_large_numbers_does_not_overflow(tmp_path: Path) -> None:
    found = run_plan(tmp_path, {"x": np.full(4, 1e30, np.float32)}, steps(["norm(x)", "std(x)"]))
    assert (found["e0"], found["e1"]) == (np.float32(2e30), 0)


# --- Other steps than `compute` ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, BY_NAME["float8_e5m2"]], ids=str)
def test_a_chain_of_steps_gives_under_jit_the_bits_of_a_run(dtype: DType, tmp_path: Path) -> None:
    chain = [
        {"scale_": {"target": "x", "by": 0.3}},
        {"add_": {"from": "y", "to": "x"}},
        {"fill": {"from": "x", "to": "c", "mode": "constant", "value": 5}},
        {"divide_": {"from": "c", "to": "x"}},
        {"multiply_": {"from": "y", "to": "x"}},
        {"subtract_": {"from": "c", "to": "x"}},
        {"lerp_": {"from": "y", "to": "x", "t": 0.3}},
        {"clamp_": {"target": "x", "min": -2.7, "max": 1.3}},
        {"reduce": {"from": "x::[:20000]", "to": "mean", "mode": "mean"}},
    ]
    tensors = {name: x[np.isfinite(x.astype(np.float64))] for name, x in operands(dtype).items()}
    size = min(x.size for x in tensors.values())
    tensors = {name: x[:size] for name, x in tensors.items()}
    ran = run_plan(tmp_path, tensors, chain)
    with jax.enable_x64(True):
        traced = jax.jit(bs.load({"inputs": ["model::a-tree"], "transforms": chain}).apply)(tensors)
    assert same(np.asarray(traced["x"]), ran["x"])
    # A sum of float64 is kept in float64 itself: its last digit depends on the order.
    np.testing.assert_allclose(
        np.float64(traced["mean"]), np.float64(ran["mean"]), rtol=0 if dtype.bits < 64 else 1e-13
    )


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_dividing_by_a_tensor_of_one_number_is_dividing(dtype: DType) -> None:
    """A scalar, a row, a constant: of a divisor that many elements share, XLA multiplies by the reciprocal."""
    x = operands(dtype)["x"][:20_000].reshape(100, 200)
    divisors = {"s": np.asarray(448, x.dtype), "r": x[3] + 5, "c": x[:, :1] + 5}
    exprs = ["x / s", "x / r", "x / c"]
    made = [{"compute": {"from": {"x": "x", e[-1]: e[-1]}, "expr": e, "to": e[-1] * 2}} for e in exprs]
    with jax.enable_x64(True):
        found = jax.jit(bs.load({"transforms": made}).apply)({"x": x, **divisors})
    for name, d in divisors.items():
        assert same(np.asarray(found[name * 2]), x / d), name


def test_gradients_pass_through_what_keeps_xla_from_rewriting() -> None:
    plan = bs.load({"transforms": [{"compute": {"from": {"x": "x"}, "expr": "x / 448 * x + x ** 3 / 7"}}]})
    x = np.linspace(0.5, 2, 7, dtype=np.float32)
    found = jax.grad(lambda x: jnp.sum(plan.apply({"x": x})["x"]))(jnp.asarray(x))
    np.testing.assert_allclose(found, 2 * x / 448 + 3 * x**2 / 7, rtol=1e-6)


@pytest.mark.parametrize(("name", "wide"), [("float16", False), ("float8_e4m3fn", False), ("bfloat16", True)])
def test_only_dtypes_with_subnormal_results_in_float32_are_computed_in_float64(name: str, wide: bool) -> None:
    x = np.ones(4, np_dtype(BY_NAME[name]))
    plan = bs.load({"transforms": [{"multiply": {"from_a": "x", "from_b": "y", "to": "x"}}]})
    lowered = jax.jit(plan.apply).lower({"x": x, "y": x}).as_text()
    assert ("f64" in lowered) is wide
