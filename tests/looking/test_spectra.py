"""`bs.spectrum` held against numpy, and what is read for it."""

from __future__ import annotations

import json
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
