"""Reductions of tensors that go by in blocks: what numpy gives at once, whatever the blocks, axes, dtypes and NaN."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.engine.plan import schedule
from brainsurgery_jax.expression import folds, partition, reductions
from brainsurgery_jax.expression.evaluate import evaluate
from brainsurgery_jax.expression.parse import parse_expression
from brainsurgery_jax.expression.typing import type_expression
from brainsurgery_jax.graph.expr import is_fold, walk
from brainsurgery_jax.numerics import windows
from brainsurgery_jax.numerics.ranks import find_places
from brainsurgery_jax.ops import compute
from brainsurgery_jax.store.safetensors.source import SafetensorsSource
from tests.checkpoints import normal, plan_of, run_plan, same, set_block

X = normal((7, 6, 5)) * 50
AXES = [axes for n in range(1, 4) for axes in combinations(range(3), n)]
NUMPY: dict[str, Any] = {
    "sum": np.sum, "mean": np.mean, "std": np.std, "var": np.var, "min": np.min, "max": np.max,
    "norm": lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)),
    "logsumexp": scipy.special.logsumexp,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _folded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every reduction is a fold, over blocks of a few elements that end anywhere in a row."""
    monkeypatch.setattr(compute, "STREAMED", 0)
    set_block(monkeypatch, 16, 8)
    for name, few in {"PART": 4000, "CHEAP": 8, "AGAIN": 64, "RUN": 4}.items():
        monkeypatch.setattr(partition, name, few)
    partition.partition.cache_clear()
    yield
    partition.partition.cache_clear()


def value(folder: Path, expr: str, x: np.ndarray, dtype: str = "float32") -> np.ndarray:
    step = {"compute": {"from": {"x": "x"}, "expr": expr, "to": "out", "dtype": dtype}}
    return run_plan(folder, {"x": x}, step)["out"]


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("name", NUMPY)
def test_blocks_are_put_together_along_any_axes(name: str, axes: tuple[int, ...], tmp_path: Path) -> None:
    made = value(tmp_path, f"{name}(x, axis={list(axes)}, keepdims=True)", x=X)
    wanted = NUMPY[name](X.astype(np.float64), axis=axes, keepdims=True)
    np.testing.assert_allclose(made, wanted, rtol=1e-6)
    assert made.shape == wanted.shape


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("name", ["prod", "any", "all"])
def test_products_and_truths_are_put_together_along_any_axes(name: str, axes: tuple[int, ...], tmp_path: Path) -> None:
    x = {"prod": X / 30, "any": (X > 110).astype(np.float32), "all": (X > -110).astype(np.float32)}[name]
    made = value(tmp_path, f"{name}(x, axis={list(axes)}, keepdims=True)", x=x)
    wanted = getattr(np, name)(x.astype(np.float64), axis=axes, keepdims=True)
    assert made.shape == wanted.shape
    np.testing.assert_allclose(made, wanted.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", "complex64", "float64"])
@pytest.mark.parametrize("name", ["sum", "mean", "norm", "std"])
def test_every_dtype_is_summed_as_numpy_does(name: str, dtype: str, tmp_path: Path) -> None:
    x = (X % 7).astype(dtype)
    made = value(tmp_path, f"{name}(x, axis=(0, 2))", x, "complex64" if dtype == "complex64" else "float64")
    wide = np.abs(x.astype(np.complex128)) if name == "norm" else x
    np.testing.assert_allclose(made, NUMPY[name](wide, axis=(0, 2), keepdims=False), rtol=1e-6)


@pytest.mark.parametrize("share", ["0.0", "0.2", "0.5", "0.731", "1.0"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8"])
def test_a_quantile_has_the_bits_of_numpy(share: str, dtype: str, tmp_path: Path) -> None:
    x = X.astype(dtype)
    made = value(tmp_path, f"quantile(x, {share})", x, "float64")
    wide = x if x.dtype.kind == "f" else x.astype(np.float64)
    wanted = np.quantile(wide, np.asarray(float(share)))
    assert same(made, wanted.astype(wide.dtype).astype(np.float64))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8"])
@pytest.mark.parametrize("k", [1, 3, 100, 210])
def test_the_kth_largest_is_the_element_at_its_place(k: int, dtype: str, tmp_path: Path) -> None:
    x = (X if dtype != "uint8" else np.abs(X)).astype(dtype)
    wanted = np.sort(x, axis=None)[-k]
    assert value(tmp_path, f"kth_largest(x, {k})", x, "float64") == wanted
    step = {"compute": {"from": {"x": "x"}, "expr": f"kth_largest(x, {k})", "to": "out"}}
    with jax.enable_x64(True):
        found = jax.jit(bs.load({"transforms": [step]}).apply)({"x": x})["out"]
        assert np.asarray(found) == wanted


@pytest.mark.parametrize("expr", ["quantile(x, 0.1)", "quantile(x, 0.8)", "median(x)", "kth_largest(x, 17)"])
@pytest.mark.parametrize("transposed", [False, True])
def test_large_arrays_in_memory_are_counted(expr: str, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reductions, "MANY", 1)
    share = expr.rstrip(")").partition("(x, ")[2]
    by = {"quantile": lambda x: np.quantile(x, np.asarray(float(share))), "median": np.median,
          "kth_largest": lambda x: np.sort(x, axis=None)[-int(share)]}[expr.partition("(")[0]]  # fmt: skip
    program = type_expression(parse_expression(expr), ("x",), (Aval(X.T.shape if transposed else X.shape, FLOAT32),))
    for bad in (0, np.nan):
        x = X.copy()
        x[1, 2, 3] = bad
        x = x.T if transposed else x
        assert same(evaluate(program.program, [x])[0], np.asarray(np.nan if np.isnan(bad) else by(x), np.float32))


def quantile(x: np.ndarray, share: float, axis: Any) -> np.ndarray:
    """As numpy from 2.4 on rounds it; before, it rounded the share to the dtype first."""
    axes = range(x.ndim) if axis is None else np.atleast_1d(axis)
    kept = [a for a in range(x.ndim) if a not in axes]
    rows = np.transpose(x, (*kept, *axes)).reshape(*(x.shape[a] for a in kept), -1)
    place, between = divmod((rows.shape[-1] - 1) * share, 1)
    ordered = np.sort(rows, axis=-1)
    low, high = ordered[..., int(place)], ordered[..., min(int(place) + 1, rows.shape[-1] - 1)]
    found = high - (high - low) * (1 - between) if between >= 0.5 else low + (high - low) * between
    return np.where(np.isnan(rows).any(axis=-1), np.float32(np.nan), found)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.4.0", reason="numpy rounded the share first")
@pytest.mark.parametrize("axis", [None, 0, (1, 2)])
def test_the_oracle_of_quantiles_has_the_bits_of_numpy(axis: Any) -> None:
    for share in (0.1, 0.37, 0.8):
        assert same(quantile(X, share, axis), np.quantile(X, share, axis=axis))


@pytest.mark.parametrize("axis", [None, 0, (1, 2)])
@pytest.mark.parametrize("expr", ["quantile(x, 0.1)", "quantile(x, 0.37)", "quantile(x, 0.8)", "median(x)"])
def test_under_jit_a_quantile_has_the_bits_of_numpy(expr: str, axis: Any) -> None:
    x = X.copy()
    x[2], x[3, 1, 2], x[4, 0, 0] = x[2, 0, 0], -np.inf, np.nan
    share = expr.rstrip(")").partition("(x, ")[2]
    with np.errstate(invalid="ignore"):
        wanted = quantile(x, float(share), axis) if share else np.median(x, axis=axis)
    step = {"compute": {"from": {"x": "x"}, "expr": f"{expr[:-1]}, axis={axis})", "to": "out"}}
    found = jax.jit(bs.load({"transforms": [step]}).apply)({"x": x})["out"]
    assert same(np.asarray(found), wanted.astype(np.float32))


DERIVED: dict[str, Any] = {
    "quantile(abs(x), 0.2)": lambda x: np.quantile(np.abs(x), np.asarray(0.2)),
    "median(x * x - 1)": lambda x: np.median(x * x - 1),
    "kth_largest(maximum(x, -x), 17)": lambda x: np.nan if np.isnan(x).any() else np.sort(np.abs(x), axis=None)[-17],
}


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("odd", [1.0, np.nan, -np.inf, -0.0, np.float32(1e-42)], ids=str)
@pytest.mark.parametrize("expr", DERIVED)
def test_places_among_what_is_made_of_each_element_are_found_as_it_is_read(
    expr: str, odd: float, sampled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds, "PIECE", 5)
    if sampled:
        monkeypatch.setattr(windows, "SAMPLE", 16)
    x = X.copy()
    x[1, 2, 3] = x[6, 5, 4] = odd
    with np.errstate(invalid="ignore"):
        assert same(value(tmp_path, expr, x), np.asarray(DERIVED[expr](x), np.float32))


@pytest.mark.parametrize(("expr", "made"), [
    ("quantile(abs(x), 0.2)", False), ("median(x)", False),
    ("quantile(x - mean(x), 0.2)", True), ("quantile(roll(x, 1), 0.2)", True), ("norm(abs(x))", True),
])  # fmt: skip
def test_only_what_is_made_of_each_element_alone_and_cut_anywhere_is_made_by_the_fold(
    expr: str, made: bool, tmp_path: Path
) -> None:
    step = {"compute": {"from": {"x": "x"}, "expr": expr, "to": "out"}}
    program = bs.load(plan_of(tmp_path, {"x": X}, step)).explain().program
    last = [e for e in walk([program.publications[0].tensors["out"]]) if is_fold(e)][-1]
    assert last.srcs[0].is_call is made


@pytest.mark.parametrize("size", [1, 2, 209, 210])
def test_a_median_has_the_bits_of_numpy(size: int, tmp_path: Path) -> None:
    x = X.reshape(-1)[:size]
    assert same(value(tmp_path, "median(x)", x=x), np.median(x))


@pytest.mark.parametrize("expr", ["sum(x)", "mean(x)", "norm(x)", "std(x)", "min(x)", "max(x)", "median(x)",
                                  "quantile(x, 0.25)"])  # fmt: skip
def test_what_holds_nan_gives_nan(expr: str, tmp_path: Path) -> None:
    for bad in (np.nan, -np.nan):
        x = X.copy()
        x[3, 3, 3] = bad
        assert np.isnan(value(tmp_path, expr, x=x))


@pytest.mark.parametrize("expr", ["min(x)", "max(x)", "median(x)"])
def test_infinity_is_a_value_like_others(expr: str, tmp_path: Path) -> None:
    x = X.copy()
    x[0, 0, 0], x[1, 1, 1] = np.inf, -np.inf
    assert value(tmp_path, expr, x) == {"min(x)": -np.inf, "max(x)": np.inf, "median(x)": np.median(x)}[expr]


DTYPES = ["int8", "uint8", "int16", "uint16", "float16", "int32", "uint32", "float32", "int64", "uint64", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fixed_number_of_passes_finds_any_place_of_the_order(dtype: str) -> None:
    x = (normal((500,)) * 60 if dtype[0] != "u" else np.abs(normal((500,)) * 60)).astype(dtype)
    places = (0, 1, 249, 498, 499)
    passes = find_places(x.dtype, places, lambda found: found, None)
    assert len(passes) == max(1, x.itemsize // 2)
    found = None
    for make in passes:
        one = make(found)
        found = one.finish(one.merge(one.block(x[:123]), one.block(x[123:])))
    np.testing.assert_array_equal(np.asarray(found), np.sort(x)[list(places)])


NESTED = {
    "where(abs(w) < quantile(abs(w), 0.2), 0, w)": 1,
    "w * minimum(1, 5 / norm(w))": 1,
    "(w - mean(w)) / std(w)": 2,
    "norm(w - mean(w))": 2,
    "max(abs(w)) + sum(w) / 3": 2,
    "w / norm(w, axis=0)": 1,
    "w / norm(w, axis=1, keepdims=True)": 0,
}


@pytest.mark.parametrize("expr", NESTED)
def test_folds_stand_where_an_operation_needs_all_of_a_tensor(
    expr: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = normal((40, 30))
    step = {"compute": {"from": {"w": "w"}, "expr": expr, "to": "out"}}
    plan = plan_of(tmp_path, {"w": w}, step)
    (out,) = bs.load(plan).explain().program.publications
    assert sum(map(is_fold, walk([out.tensors["out"]]))) == NESTED[expr]
    made = run_plan(tmp_path, {"w": w}, step)["out"]
    applied = bs.load({"transforms": [step]}).apply({"w": w})["out"]
    assert same(made, np.asarray(applied))
    np.testing.assert_allclose(made, jax.jit(bs.load({"transforms": [step]}).apply)({"w": w})["out"], rtol=1e-5)
    monkeypatch.setattr(compute, "STREAMED", 1 << 60)
    np.testing.assert_allclose(made, run_plan(tmp_path, {"w": w}, step)["out"], rtol=1e-6)


def test_folds_of_large_tensors_have_the_bits_of_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether all threads compute them before, or the task that needs them."""
    w = normal((40, 30))
    step = {"compute": {"from": {"w": "w"}, "expr": "(w - mean(w)) / norm(w - mean(w)) + quantile(w, 0.3)"}}
    alone = run_plan(tmp_path, {"w": w}, step)["w"]
    monkeypatch.setattr(schedule, "EARLY", 0)
    assert same(run_plan(tmp_path, {"w": w}, step)["w"], alone)


def test_large_folds_are_computed_in_levels_and_others_by_their_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"w": normal((40, 30)), "v": normal((30,))}
    step = {"compute": {"from": {"w": "w", "v": "v"}, "expr": "w * norm(w - mean(w)) + sum(w @ v)", "to": "out"}}
    (out,) = bs.load(plan_of(tmp_path, tensors, step)).explain().program.publications
    root = out.tensors["out"]
    assert schedule.early_folds([root]) == []
    monkeypatch.setattr(schedule, "EARLY", 0)
    levels = schedule.early_folds([root])
    assert [[dict(e.static)["program"].nodes[-1].op for e in level] for level in levels] == [["mean"], ["norm"]]


def test_folds_of_one_tensor_read_it_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean and the norm go by together; the edit then reads parts, not ranges."""
    monkeypatch.setattr(schedule, "EARLY", 0)
    w = normal((40, 30))
    read: list[int] = []
    original = SafetensorsSource.read_range

    def counted(self: Any, name: str, start: int, stop: int) -> Any:
        read.append(stop - start)
        return original(self, name, start, stop)

    monkeypatch.setattr(SafetensorsSource, "read_range", counted)
    step = {"compute": {"from": {"w": "w"}, "expr": "w * mean(w) + norm(w)"}}
    run_plan(tmp_path, {"w": w}, step)
    assert sum(read) == w.size


@pytest.mark.parametrize("early", [0, 1 << 60])
@pytest.mark.parametrize("reduction", ["norm(w)", "norm(w, axis=0)", "norm(w, axis=1, keepdims=True)"])
def test_what_a_step_reduces_is_an_operand_of_the_next_that_is_repeated(
    reduction: str, early: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number, a row, a column: `w / n` goes by in flat blocks, and `n` is a fold."""
    monkeypatch.setattr(schedule, "EARLY", early)
    w = normal((40, 30))
    steps = [
        {"compute": {"from": {"w": "w"}, "expr": reduction, "to": "n"}},
        {"compute": {"from": {"w": "w", "n": "n"}, "expr": "w / n"}},
    ]
    axis = {"norm(w)": None, "norm(w, axis=0)": 0}.get(reduction, 1)
    wanted = w / np.linalg.norm(w.astype(np.float64), axis=axis, keepdims=True).astype(np.float32)
    np.testing.assert_allclose(run_plan(tmp_path, {"w": w}, steps)["w"], wanted, rtol=1e-6)
    plan = bs.load({"transforms": steps})
    np.testing.assert_allclose(plan.apply({"w": w})["w"], wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(plan.apply)({"w": w})["w"], wanted, rtol=1e-5)
