"""Thresholds of task vectors: the elements that numpy's sort finds, whatever the sample and the blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.merging.selection import order_statistics
from brainsurgery_jax.numerics import windows
from brainsurgery_jax.reduction import Again
from tests.checkpoints import normal, set_block
from tests.merging import oracles as by
from tests.merging.cases import merge

SIZE = 5000
SHARES = (0.0, 0.001, 0.2, 0.5, 0.97, 0.9999)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples and windows of few elements."""
    monkeypatch.setattr(windows, "SAMPLE", 200)
    monkeypatch.setattr(windows, "LOOSE", 300)


def found(x: np.ndarray, shares: tuple[float, ...] = SHARES, sampled: slice = slice(None), *, by_nonzero: bool = False
          ) -> tuple[np.ndarray, int]:  # fmt: skip
    """The elements of a tensor at shares of the sorted order, and the passes that this took. `sampled`: what the sample
    is taken of."""
    places = lambda size, nonzero, static, at: tuple(int(s * (nonzero if by_nonzero else size)) for s in shares)  # noqa: E731
    kernel = order_statistics("tried", lambda xs, static: [xs[0]], places, lambda static: (1, len(shares)), by_nonzero)
    assert kernel.fold is not None
    first, *others = kernel.fold((Aval(x.shape, BY_NAME[x.dtype.name]),), {})
    gather: Any = first(None)
    known: Any = gather.finish(gather.block(x[sampled] if gather.sampled else x))
    passes = 1
    while others:
        reduction: Any = others[0](known)
        parts = [reduction.block(x[at : at + 700]) for at in range(0, x.size, 700)]
        merged = parts[0]
        for part in parts[1:]:
            merged = reduction.merge(merged, part)
        answer = reduction.finish(merged)
        passes += 1
        if not isinstance(answer, Again):
            return answer, passes
        known = answer.known
    return known, passes


def sorted_at(x: np.ndarray, size: int | None = None) -> list[float]:
    return [float(np.sort(x)[int(s * (size or x.size))]) for s in SHARES]


MADE: dict[str, Callable[[], np.ndarray]] = {
    "normal": lambda: normal((SIZE,)),
    "magnitudes": lambda: abs(normal((SIZE,))),
    "many equal": lambda: np.round(normal((SIZE,)) * 2),
    "mostly zero": lambda: np.where(normal((SIZE,)) > 1, normal((SIZE,), seed=1), np.float32(0)),
    "all equal": lambda: np.full(SIZE, 3, np.float32),
    "all zero": lambda: np.zeros(SIZE, np.float32),
    "sorted": lambda: np.sort(normal((SIZE,))),
    "far apart": lambda: (10.0 ** (30 * normal((SIZE,)).clip(-1, 1))).astype(np.float32),
    "with infinity": lambda: np.where(normal((SIZE,)) > 1, np.float32(np.inf), normal((SIZE,))),
    "subnormal": lambda: (normal((SIZE,)) * 1e-40).astype(np.float32),
    "few": lambda: normal((150,)),
    "one": lambda: normal((1,)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_the_elements_are_those_that_a_sort_finds(made: Callable[[], np.ndarray], dtype: str) -> None:
    x = made().astype(dtype)
    assert found(x)[0].tolist() == sorted_at(x)


@pytest.mark.parametrize("sampled", [slice(0, 300), slice(4000, 4300), slice(0, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sample_that_is_unlike_the_rest_costs_passes_but_changes_nothing(sampled: slice, dtype: str) -> None:
    x = np.sort(normal((SIZE,)) * 100).astype(dtype)
    answer, passes = found(x, sampled=sampled)
    assert answer.tolist() == sorted_at(x)
    assert 2 < passes <= 7


def test_one_sample_and_one_count_are_enough_for_usual_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SAMPLE", 1 << 15)
    for seed in range(5):
        x = abs(normal((100_000,), seed=seed))
        answer, passes = found(x, (0.5, 0.9))
        assert (answer.tolist(), passes) == ([float(np.sort(x)[int(s * x.size)]) for s in (0.5, 0.9)], 2)


def test_rows_that_differ_widen_the_windows_of_a_sample_that_has_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SAMPLE", 1 << 15)
    for seed in (2, 3, 5):  # a window of the usual width misses the place
        x = abs(normal((512, 1024)) * np.exp(normal((512, 1), seed=seed) / 2)).reshape(-1)
        answer, passes = found(x, (0.5,), sampled=slice(0, x.size // 4))
        assert (answer.tolist(), passes) == ([float(np.sort(x)[x.size // 2])], 2)


def test_nan_anywhere_gives_nan() -> None:
    for at, sign in ((0, 1), (1234, -1), (SIZE - 1, 1)):
        x = normal((SIZE,))
        x[at] = np.copysign(np.float32(np.nan), sign)
        assert np.isnan(found(x)[0]).all()
        assert np.isnan(found(x[at : at + 100])[0]).all()


def test_nan_gives_nan_in_a_whole_and_in_a_trace_as_well() -> None:
    kernel = order_statistics("tried", lambda xs, static: [xs[0]], lambda *_: (0, 3), lambda static: (1, 2))
    x = normal((100,))
    with jax.enable_x64(True):
        assert np.asarray(jax.jit(kernel.fn)(x)).tolist() == kernel.fn(x).tolist() == [np.sort(x)[0], np.sort(x)[3]]
        x[7] = np.nan
        assert np.isnan(kernel.fn(x)).all()
        assert np.isnan(jax.jit(kernel.fn)(x)).all()


def test_places_may_depend_on_how_many_elements_are_not_zero() -> None:
    x = np.where(normal((SIZE,)) > 0.3, abs(normal((SIZE,), seed=1)), np.float32(0))
    assert found(x, by_nonzero=True)[0].tolist() == sorted_at(x, int(np.count_nonzero(x)))


def test_a_place_behind_the_last_is_infinite() -> None:
    for size in (SIZE, 20):
        answer, _ = found(normal((size,)), (0.5, 1.0))
        assert np.isinf(answer).tolist() == [False, True]


@pytest.mark.parametrize("order", ["as drawn", "sorted"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64], ids=lambda d: np.dtype(d).name)
def test_ties_of_tensors_of_many_blocks_keeps_what_is_largest(
    dtype: Any, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    set_block(monkeypatch, 1 << 8, 1 << 8)
    tensors = {alias: {"w": normal((70, 80), seed=seed).astype(dtype)} for seed, alias in enumerate(("base", "a", "b"))}
    if order == "sorted":
        base = tensors["base"]["w"].astype(np.float64)
        tensors["a"] = {"w": (base + np.sort(normal((5600,))).reshape(70, 80)).astype(dtype)}
    keys = {"method": "ties", "base": "base", "models": ["a", "b"], "parameters": {"density": 0.4}, "to": "m"}
    made = merge(tmp_path, tensors, keys)["w"].astype(np.float64)
    wide = [tensors[alias]["w"].astype(np.float64) for alias in ("base", "a", "b")]
    wanted = by.ties(wide[0], wide[1:], (1, 1), (0.4, 0.4))
    off = np.abs(made - wanted) > np.abs(wanted) * 2.0**-8 + 1e-6
    # Of equal magnitudes more are kept than the oracle keeps.
    assert off.mean() < (0.02 if dtype is ml_dtypes.bfloat16 else 1e-12)
