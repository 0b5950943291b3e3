"""Reductions of tensors that are larger than a part: the same as at once, whatever the axes, and never held whole."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import counting, normal, plan_of, run_plan, same, set_block

MODES = {
    "sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max,
    "norm": lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)),
}  # fmt: skip
AXES = [axes for n in range(4) for axes in combinations(range(3), n)]


def reduced(folder: Path, x: np.ndarray, **keys: object) -> np.ndarray:
    return run_plan(folder, {"x": x}, {"reduce": {"from": "x", "to": "new", **keys}})["new"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", [4, 7, 20])
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_blocks_are_put_together_along_any_axes(
    axes: tuple[int, ...], block: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_block(monkeypatch, block)
    x = counting((5, 4, 3)) - 30
    found = reduced(tmp_path, x, mode=mode, dim=list(axes), keepdims=True)
    np.testing.assert_allclose(found, MODES[mode](x.astype(np.float64), axis=axes, keepdims=True), rtol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_without_axes_a_tensor_becomes_one_number(mode: str, tmp_path: Path) -> None:
    assert reduced(tmp_path, normal((5, 4)), mode=mode).shape == ()


def test_a_sum_of_many_small_numbers_loses_none(tmp_path: Path) -> None:
    """In float32, 1 added to 2**24 is 2**24."""
    x = np.ones(2**24 + 64, np.float32)
    assert reduced(tmp_path, x, mode="sum") == x.size


def test_a_mean_of_halves_is_rounded_once(tmp_path: Path) -> None:
    x = normal((300,), np.float16)
    assert same(reduced(tmp_path, x, mode="mean"), np.float16(x.astype(np.float64).mean()))


def test_a_number_that_is_none_stays(tmp_path: Path) -> None:
    for mode in MODES:
        assert np.isnan(reduced(tmp_path, np.array([1, np.nan], np.float32), mode=mode))


def test_the_norm_of_complex_numbers_is_real(tmp_path: Path) -> None:
    assert same(reduced(tmp_path, np.array([3 + 4j], np.complex64), mode="norm"), np.float32(5))


@pytest.mark.parametrize(
    "x",
    [np.array([100, 100], np.int8), np.array([2**62, 2**62], np.int64), np.array([2**63, 2**63], np.uint64)],
    ids=["int8", "int64", "uint64"],
)
def test_a_sum_of_integers_that_does_not_fit_stops_the_run(x: np.ndarray, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"x": x}, {"reduce": {"from": "x", "to": "new", "mode": "sum"}})
    with pytest.raises(PlanError, match="a sum of integers does not fit their dtype"):
        bs.load(plan).run(durable=False)


def test_integers_of_which_a_float_cannot_tell_neighbours_are_summed_exactly(tmp_path: Path) -> None:
    assert reduced(tmp_path, np.array([2**60 + 1, 1], np.int64), mode="sum") == 2**60 + 2


def test_the_part_of_a_tensor_that_a_slice_names_is_reduced(tmp_path: Path) -> None:
    x = counting((4, 6))
    found = run_plan(tmp_path, {"x": x}, {"reduce": {"from": "x::[1:3, ::2]", "to": "new", "mode": "sum", "dim": 0}})
    assert same(found["new"], x[1:3, ::2].sum(0))


def test_empty_axes_that_are_not_reduced_stay(tmp_path: Path) -> None:
    assert reduced(tmp_path, np.zeros((3, 0), np.float32), mode="sum", dim=0).shape == (0,)


def test_a_large_tensor_is_never_held_whole(tmp_path: Path) -> None:
    """256 MB in blocks of 4 MB: the projection is that of one of them, widened and squared."""
    x = np.zeros((1 << 14, 1 << 12), np.float32)
    steps = [{"reduce": {"from": "x", "to": "new", "mode": "norm", "dim": 1}}, {"delete": {"target": "x"}}]
    explained = bs.load(plan_of(tmp_path, {"x": x}, steps)).explain()
    assert explained.peak < x.nbytes // 8
