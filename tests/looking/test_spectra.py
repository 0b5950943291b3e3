"""`bs.spectrum` held against numpy, and what is read for it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import typer

import brainsurgery_jax as bs
from brainsurgery_jax.cli.spectrum import spectrum
from tests.checkpoints import write


def draw(shape: tuple[int, int], dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (40, 9), (300, 280)])
def test_singular_values_are_those_of_numpy(here: Path, dtype: type, shape: tuple[int, int]):
    x = draw(shape, dtype)
    found = bs.spectrum(write(here / "m.safetensors", {"w": x}))["w"]
    wanted = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5, atol=1e-5 * wanted[0])
    np.testing.assert_allclose(found.energy, np.cumsum(wanted**2) / np.sum(wanted**2), rtol=1e-5)


def test_a_difference_is_that_of_two_checkpoints(here: Path):
    x, low = draw((60, 40)), draw((60, 3), seed=1) @ draw((3, 40), seed=2)
    left = write(here / "a.safetensors", {"w": x, "only": x})
    right = write(here / "b.safetensors", {"w": x + low})
    found = bs.spectrum(left, right)
    assert list(found) == ["w"]
    np.testing.assert_allclose(found["w"].values[:3], np.linalg.svd(low, compute_uv=False)[:3], rtol=1e-4)
    assert found["w"].rank_of(0.9999) == 3


@cache
def directions(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    u, _, v = np.linalg.svd(draw(shape).astype(np.float64), full_matrices=False)
    return u, v


@pytest.mark.parametrize("shape", [(270, 400), (400, 270)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("most", [1, 20, 200])
def test_the_largest_values_alone_are_certified(here: Path, shape: tuple[int, int], decay: float, most: int):
    u, v = directions(shape)
    x = ((u * np.arange(1, 271.0) ** -decay) @ v).astype(np.float32)
    found = bs.spectrum(write(here / "m.safetensors", {"w": x}), most=most)["w"]
    wanted = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    share = np.cumsum(wanted**2) / np.sum(wanted**2)
    assert (len(found.values), found.is_complete) == (most, False)
    assert found.excess <= 1e-4
    left = np.sqrt(1 - found.captured) / np.sqrt(1 - share[most - 1])
    assert 1 - 5e-3 < left <= 1 + found.excess + 5e-3  # norms are sums in float32
    np.testing.assert_allclose(found.energy[-1], share[most - 1], rtol=1e-3)
    if decay:
        np.testing.assert_allclose(found.values, wanted[:most], rtol=2e-3)
    assert np.isnan(found.effective_rank)


def test_a_rank_beyond_the_values_that_were_computed_is_not_guessed(here: Path):
    path = write(
        here / "m.safetensors", {"w": np.diag([2.0, 1, 1]), "zero": np.zeros((3, 3)), "nan": np.eye(3) * np.nan}
    )
    found = bs.spectrum(path, most=1)
    assert [found["w"].rank_of(share) for share in (0.5, 0.9)] == [1, None]
    np.testing.assert_allclose(found["w"].captured, 4 / 6)
    assert (found["zero"].rank_of(0.5), found["nan"].rank_of(0.5)) == (0, None)
    assert bs.spectrum(path, most=3)["w"].rank_of(0.9) == 3
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        bs.spectrum(path, most=0)


def test_the_largest_values_of_a_difference(here: Path):
    x, low = draw((300, 400)), draw((300, 3), seed=1) @ draw((3, 400), seed=2)
    left, right = write(here / "a.safetensors", {"w": x}), write(here / "b.safetensors", {"w": x + low})
    found = bs.spectrum(left, right, most=5)["w"]
    np.testing.assert_allclose(found.values[:3], np.linalg.svd(low, compute_uv=False)[:3], rtol=1e-3)
    assert found.rank_of(0.999) == 3


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_largest_values_at_any_scale(here: Path, scale: float):
    x = draw((300, 280), np.float64)
    found = bs.spectrum(write(here / "m.safetensors", {"w": x * scale}), most=4)["w"]
    np.testing.assert_allclose(found.values / scale, np.linalg.svd(x, compute_uv=False)[:4], rtol=1e-4)


def test_the_command_says_which_ranks_are_beyond(here: Path, capsys: pytest.CaptureFixture[str]):
    path = str(write(here / "m.safetensors", {"w": np.diag([2, 1, 0]).astype(np.float32)}))
    spectrum((path, None), None, None, memory=None, json=False, most=1)
    assert capsys.readouterr().out.splitlines()[1].split() == ["w", "[3,", "3]", ">1", ">1", ">1", "-", "2"]


def test_ranks_of_known_values(here: Path):
    tensors = {"flat": np.eye(8, dtype=np.float32), "one": np.diag([1.0, 0, 0]), "none": np.zeros((3, 2))}
    found = bs.spectrum(write(here / "m.safetensors", tensors))
    assert [found["flat"].rank_of(share) for share in (0.125, 0.5, 0.99)] == [1, 4, 8]
    np.testing.assert_allclose([found[n].effective_rank for n in ("flat", "one", "none")], [8, 1, 0])
    assert (found["one"].rank_of(0.99), found["none"].rank_of(0.99)) == (1, 0)


def test_what_is_not_finite_has_no_rank_and_spoils_no_other(here: Path):
    bad = draw((5, 4))
    bad[1, 1] = np.inf
    found = bs.spectrum(write(here / "m.safetensors", {"bad": bad, "good": draw((5, 4))}))
    assert np.isnan(found["bad"].values).all()
    assert (found["bad"].rank_of(0.9), np.isnan(found["good"].values).any()) == (None, False)


def test_only_matrices_are_read_and_each_once(here: Path):
    w = draw((20, 30))
    tensors = {"b": np.ones(9, np.float32), "ids": np.ones((2, 2), np.int32), "w": w}
    checkpoint = bs.open(str(write(here / "m.safetensors", tensors)))
    assert list(bs.spectrum(checkpoint)) == ["w"]
    assert checkpoint.source.bytes_read == w.nbytes


def test_no_matrix_is_an_error_that_helps(here: Path):
    path = write(here / "m.safetensors", {"weight": draw((2, 2)), "b": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=r"no floating-point matrix of .* matches 'wieght'\. Did you mean 'weight'\?"):
        bs.spectrum(path, target="wieght")
    with pytest.raises(ValueError, match="matches 'b'"):
        bs.spectrum(path, target="b")


def test_the_command_prints_ranks(here: Path, capsys: pytest.CaptureFixture[str]):
    bad = np.full((2, 2), np.nan, np.float32)
    path = str(write(here / "m.safetensors", {"bad": bad, "w": np.diag([2, 1, 0]).astype(np.float32)}))
    spectrum((path, None), None, 2, memory=None, json=False)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["matrix", "shape", "90%", "95%", "99%", "effective", "rank", "largest"]
    assert [row.split() for row in rows] == [
        ["bad", "[2,", "2]", "-", "-", "-", "nan", "nan", "nan"],
        ["w", "[3,", "3]", "2", "2", "2", "1.9", "2", "1"],
    ]


def test_the_command_gives_json(here: Path, capsys: pytest.CaptureFixture[str]):
    bad = np.full((2, 2), np.nan, np.float32)
    path = str(write(here / "m.safetensors", {"bad": bad, "w": np.diag([2, 1, 0]).astype(np.float32)}))
    spectrum((path, None), None, None, memory=None, json=True)
    spectra = json.loads(capsys.readouterr().out)["spectra"]
    assert spectra["bad"]["values"] is None
    assert spectra["w"]["ranks"] == {"0.9": 2, "0.95": 2, "0.99": 2}
    np.testing.assert_allclose(spectra["w"]["energy"], [0.8, 1, 1])


def test_the_command_refuses_a_target_that_matches_nothing(here: Path):
    path = str(write(here / "m.safetensors", {"w": draw((2, 2))}))
    with pytest.raises(typer.BadParameter, match="Did you mean 'w'"):
        spectrum((path, None), "ww", None, memory=None, json=False)
