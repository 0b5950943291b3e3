"""`bs.stats` held against numpy, and what is read for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.numerics.moments import PIECE
from tests.checkpoints import write


def stats_of(here: Path, x: np.ndarray) -> bs.TensorStats:
    return bs.stats(write(here / "x.safetensors", {"x": x}))["x"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int32])
@pytest.mark.parametrize("size", [1, 1000, PIECE + 1, 3 * PIECE - 5])
def test_statistics_are_those_of_numpy(here: Path, dtype: type, size: int):
    x = (np.random.default_rng(size).normal(size=size) * 4).astype(dtype)
    found, y = stats_of(here, x), x.astype(np.float64)
    assert (found.size, found.min, found.max) == (size, y.min(), y.max())
    wanted = (y.mean(), y.std(), np.linalg.norm(y))
    np.testing.assert_allclose((found.mean, found.std, found.norm), wanted, rtol=1e-12, atol=1e-14)
    assert (found.zeros, found.nans, found.infs) == (np.count_nonzero(y == 0), 0, 0)


def test_a_large_mean_costs_the_deviation_no_digits(here: Path):
    x = 1e8 + np.random.default_rng(0).normal(size=2 * PIECE)
    np.testing.assert_allclose(stats_of(here, x).std, x.std(), rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_neither_overflow_nor_vanish(here: Path, scale: float):
    found = stats_of(here, np.array([3.0, -4.0]) * scale)
    np.testing.assert_allclose((found.norm, found.std), (5 * scale, 3.5 * scale), rtol=1e-14)


def test_a_mean_does_not_overflow_where_the_sum_does(here: Path):
    np.testing.assert_allclose(stats_of(here, np.full(4, 1.5e308)).mean, 1.5e308)


@pytest.mark.parametrize("at", [0, PIECE + 3])
def test_nan_is_counted_and_makes_the_others_nan(here: Path, at: int):
    x = np.zeros(2 * PIECE, np.float32)
    x[[at, at + 1, at + 2]] = np.nan, np.inf, -np.inf
    found = stats_of(here, x)
    assert (found.zeros, found.nans, found.infs) == (2 * PIECE - 3, 1, 2)
    assert all(np.isnan([found.min, found.max, found.mean, found.std, found.norm]))


def test_infinity_leaves_extremes_and_norm(here: Path):
    found = stats_of(here, np.array([1, np.inf], np.float32))
    assert (found.min, found.max, found.mean, found.norm, found.infs) == (1, np.inf, np.inf, np.inf, 1)
    assert np.isnan(found.std)


def test_what_has_no_statistics_is_left_out(here: Path):
    path = write(here / "m.safetensors", {"none": np.zeros((0, 3), np.float32), "w": np.ones(2, np.float32)})
    assert list(bs.stats(path)) == ["w"]


def test_a_part_of_a_checkpoint_has_its_own_names(here: Path):
    path = write(here / "m.safetensors", {"h.0.w": np.ones(2, np.float32), "x": np.zeros(2, np.float32)})
    assert bs.stats(bs.open(str(path)).below("h"))["0.w"].mean == 1
    assert list(bs.stats(path, target="x")) == ["x"]


def test_a_target_that_matches_nothing_is_an_error(here: Path):
    path = write(here / "m.safetensors", {"weight": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=r"no tensor of .* matches 'wieght'\. Did you mean 'weight'\?"):
        bs.stats(path, target="wieght")


def test_every_tensor_is_read_once(here: Path):
    tensors = {f"w{i}": np.ones((700, 300), np.float32) for i in range(3)}
    checkpoint = bs.open(str(write(here / "m.safetensors", tensors)))
    bs.stats(checkpoint)
    assert checkpoint.source.bytes_read == sum(x.nbytes for x in tensors.values())


def test_the_command_prints_the_same_figures(here: Path, capsys: pytest.CaptureFixture[str]):
    from brainsurgery_jax.cli.inspect_ import inspect

    path = write(here / "m.safetensors", {"w": np.array([0, 3, 4], np.float32)})
    assert inspect(str(path), None, "compact", stats=True) == 0
    shown = capsys.readouterr().out
    assert "std 1.7" in shown
    assert "norm 5" in shown
    assert "zeros 1" in shown
    assert "nans" not in shown
    assert inspect(str(path), None, "json", stats=True) == 0
    assert json.loads(capsys.readouterr().out)["tensors"]["w"]["norm"] == 5


def test_the_command_draws_histograms_and_gives_their_bins_as_json(here: Path, capsys: pytest.CaptureFixture[str]):
    from brainsurgery_jax.cli.inspect_ import Looks, inspect

    path = write(here / "m.safetensors", {"w": np.array([0, 0, 0, 4, 16], np.float32), "c": np.ones(1, np.complex64)})
    assert inspect(str(path), "w", "compact", stats=False, looks=Looks(histogram=True)) == 0
    assert "|█   ▃          ▃|" in capsys.readouterr().out
    assert inspect(str(path), None, "json", stats=False, looks=Looks(histogram=True)) == 0
    tensors = json.loads(capsys.readouterr().out)["tensors"]
    assert "histogram" not in tensors["c"]
    assert tensors["w"]["quantiles"]["0.75"] == 4
    assert (sum(tensors["w"]["histogram"]["counts"]), len(tensors["w"]["histogram"]["edges"])) == (5, 65)


def test_the_effective_rank_is_that_of_the_spectrum_and_only_on_demand(here: Path, capsys: pytest.CaptureFixture[str]):
    from brainsurgery_jax.cli.inspect_ import Looks, inspect

    path = write(here / "m.safetensors", {"w": np.diag([2, 1, 0]).astype(np.float32), "b": np.ones(3, np.float32)})
    assert bs.stats(path)["w"].effective_rank is None
    found = bs.stats(path, effective_rank=True)
    shares = np.array([2 / 3, 1 / 3])
    np.testing.assert_allclose(found["w"].effective_rank or 0, np.exp(-np.sum(shares * np.log(shares))))
    assert found["b"].effective_rank is None
    assert inspect(str(path), None, "compact", stats=False, looks=Looks(effective_rank=True)) == 0
    assert "effective rank 1.89" in capsys.readouterr().out


def test_asking_for_a_name_reads_nothing(here: Path):
    checkpoint = bs.open(str(write(here / "m.safetensors", {"w": np.ones(9, np.float32)})))
    assert "w" in checkpoint
    assert "v" not in checkpoint
    assert checkpoint.source.bytes_read == 0


@pytest.mark.parametrize("call", [bs.stats, bs.spectrum])
def test_a_tree_is_refused_with_what_to_do(call: Callable[[object], object]):
    with pytest.raises(TypeError, match=rf"^{call.__name__} takes paths .* got a dict\. Save a tree first: bs\.save"):
        call({"w": np.ones(1)})
