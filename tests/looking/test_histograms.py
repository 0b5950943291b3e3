"""`bs.histogram` and `bs.heat_map` held against numpy, and what is read for them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.looking import heat_maps
from brainsurgery_jax.looking.histograms import PIECE, SHARES, histograms_on_one_span
from tests.checkpoints import SAVABLE, np_dtype, write

REAL = [d for d in SAVABLE if d.kind in ("float", "int", "uint", "bool")]


def histogram_of(here: Path, x: np.ndarray, **wishes: object) -> bs.Histogram:
    return bs.histogram(write(here / "x.safetensors", {"x": x}), "x", **wishes)  # pyright: ignore[reportArgumentType]


def draw(size: int, dtype: np.dtype | type) -> np.ndarray:
    return (np.abs(np.random.default_rng(size).normal(size=size) * 4)).astype(dtype)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("size", [1, 2, 1000, 2 * PIECE + 7])
def test_counts_and_quantiles_are_those_of_numpy(here: Path, dtype: DType, size: int):
    x = draw(size, np_dtype(dtype))
    found, y = histogram_of(here, x, bins=17), x.astype(np.float64)
    finite = y[np.isfinite(y)]
    np.testing.assert_array_equal(found.counts, np.histogram(finite, bins=found.edges)[0])
    if finite.min() < finite.max():
        assert (found.edges[0], found.edges[-1]) == (finite.min(), finite.max())
        np.testing.assert_allclose(np.diff(found.edges), (finite.max() - finite.min()) / 17, rtol=1e-9)
    assert (found.size, found.below, found.above) == (size, 0, 0)
    assert found.counts.sum() + found.nans + found.infs == size
    if not found.nans and not found.infs:
        wanted = np.quantile(y, SHARES)
        np.testing.assert_allclose(list(found.quantiles.values()), wanted, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_nan_and_infinity_are_counted_apart(here: Path, dtype: type):
    x = np.array([1, np.nan, np.inf, -np.inf, 3, -0.0, -2], dtype)
    found = histogram_of(here, x, bins=5)
    assert (found.nans, found.infs, found.counts.tolist()) == (1, 2, [1, 0, 1, 1, 1])
    assert all(np.isnan(list(found.quantiles.values())))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_span_leaves_elements_below_and_above(here: Path, dtype: type):
    found = histogram_of(here, np.array([-9, 0, 1, 2, 3, 50, 60], dtype), bins=2, span=(0, 2))
    assert (found.below, found.counts.tolist(), found.above) == (1, [1, 2], 3)


def test_two_sides_are_counted_in_the_same_bins(here: Path):
    complex_numbers = np.ones(2, "c8")
    left = {"x": np.array([0, 1, 2, 8], "f4"), "z": complex_numbers}
    right = {"x": np.array([-4, 1, 1, 4], "f4"), "z": complex_numbers}
    first, second = (bs.open(write(here / f"{n}.safetensors", one)) for n, one in (("l", left), ("r", right)))
    before, after = histograms_on_one_span(first, second, ["x", "z"])
    assert list(before) == list(after) == ["x"]
    for found, one in ((before["x"], left["x"]), (after["x"], right["x"])):
        np.testing.assert_array_equal(found.counts, np.histogram(one, bins=64, range=(-4, 8))[0])


@pytest.mark.parametrize("value", [0.0, 7.0, 1e300, -1.7e308])
def test_a_constant_has_bins_around_it(here: Path, value: float):
    found = histogram_of(here, np.full(9, value))
    assert found.counts.sum() == 9
    assert np.isfinite(found.edges).all()
    assert found.quantiles[0.5] == value


def test_the_widest_range_does_not_overflow(here: Path):
    found = histogram_of(here, np.array([-1.7e308, 1.7e308]), bins=2)
    assert found.counts.tolist() == [1, 1]


def test_nothing_finite_is_in_no_bin(here: Path):
    for dtype in (np.float16, np.float32):
        found = histogram_of(here, np.full(3, np.inf, dtype))
        assert (found.counts.sum(), found.infs, found.quantiles[0.5]) == (0, 3, np.inf)


@pytest.mark.parametrize(("dtype", "passes"), [(ml_dtypes.bfloat16, 1), (np.float32, 2), (np.float64, 4)])
def test_a_tensor_is_read_once_for_each_16_bits_of_an_element(here: Path, dtype: type, passes: int):
    x = draw(3 * PIECE, dtype)
    checkpoint = bs.open(str(write(here / "x.safetensors", {"x": x, "other": x})))
    bs.histogram(checkpoint, "x")
    assert checkpoint.source.bytes_read == passes * x.nbytes


def test_what_cannot_be_counted_is_an_error_that_helps(here: Path):
    path = write(here / "m.safetensors", {"weight": np.ones(2, np.float32), "none": np.ones(0, np.float32)})
    with pytest.raises(ValueError, match=r"is named 'wieght'\. Did you mean 'weight'\?"):
        bs.histogram(path, "wieght")
    with pytest.raises(ValueError, match="only tensors of real numbers"):
        bs.histogram(path, "none")
    with pytest.raises(ValueError, match="bins must be between 1 and 65,536, got 0"):
        bs.histogram(path, "weight", bins=0)
    with pytest.raises(ValueError, match="the smaller one first"):
        bs.histogram(path, "weight", span=(2, 2))


# --- Heat maps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (11,), (9, 14), (3, 5, 7), (1, 40), (40, 1)])
@pytest.mark.parametrize("slab", [5, 30, heat_maps.SLAB])
def test_cells_are_those_of_numpy(here: Path, shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heat_maps, "SLAB", slab)
    x = np.asarray(np.random.default_rng(1).normal(size=shape))
    found = bs.heat_map(write(here / "x.safetensors", {"x": x}), "x", rows=4, columns=3)
    flat = x.reshape(-1, shape[-1] if shape else 1)
    assert found.shape == flat.shape
    assert found.mean.shape == (min(4, len(flat)), min(3, flat.shape[1]))
    for i, j in np.ndindex(found.mean.shape):
        cell = flat[found.rows[i] : found.rows[i + 1], found.columns[j] : found.columns[j + 1]]
        np.testing.assert_allclose(found.mean[i, j], cell.mean(), rtol=1e-12, atol=1e-15)
        assert found.absmax[i, j] == np.abs(cell).max()


def test_a_small_window_shows_single_values_and_reads_no_other_rows(here: Path):
    x = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    checkpoint = bs.open(str(write(here / "x.safetensors", {"x": x})))
    found = bs.heat_map(checkpoint, "x", window=((7, 12), (100, 110)))
    np.testing.assert_array_equal(found.mean, x[7:12, 100:110])
    assert checkpoint.source.bytes_read <= 5 * 200 * 4


def test_the_window_of_a_tensor_with_more_axes_counts_its_rows(here: Path):
    x = np.random.default_rng(0).normal(size=(4, 5, 6))
    found = bs.heat_map(write(here / "x.safetensors", {"x": x}), "x", window=((6, 9), (1, 3)))
    np.testing.assert_array_equal(found.mean, x.reshape(20, 6)[6:9, 1:3])


def test_a_difference_is_right_less_left(here: Path):
    a, b = (np.random.default_rng(i).normal(size=(6, 8)) for i in range(2))
    left, right = write(here / "a.safetensors", {"w": a}), write(here / "b.safetensors", {"w": b})
    np.testing.assert_allclose(bs.heat_map(left, "w", right, rows=1, columns=1).mean, [[(b - a).mean()]])


def test_nan_stays_in_its_cell(here: Path):
    x = np.ones((4, 4), np.float16)
    x[0, 0] = np.nan
    found = bs.heat_map(write(here / "x.safetensors", {"x": x}), "x", rows=2, columns=2)
    np.testing.assert_array_equal(np.isnan(found.mean), [[True, False], [False, False]])
    np.testing.assert_array_equal(np.isnan(found.absmax), np.isnan(found.mean))


def test_a_heat_map_that_cannot_be_is_an_error(here: Path):
    path = write(here / "a.safetensors", {"w": np.ones((2, 3))})
    other = write(here / "b.safetensors", {"w": np.ones((3, 3))})
    with pytest.raises(ValueError, match=r"shapes \[2, 3\] and \[3, 3\]"):
        bs.heat_map(path, "w", other)
    with pytest.raises(ValueError, match=r"is not a part of \[2, 3\]"):
        bs.heat_map(path, "w", window=((0, 3), (0, 3)))
    with pytest.raises(ValueError, match="between 1 and"):
        bs.heat_map(path, "w", rows=0)
