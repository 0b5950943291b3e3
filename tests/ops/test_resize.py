"""`resize` gives the bits of `jax.image.resize`, and those of torch where it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.ops.resize import _nearest
from tests.checkpoints import normal, run_plan

METHODS = ("nearest", "bilinear", "bicubic", "bicubic-pytorch", "lanczos3", "lanczos5")
TABLE = normal((1, 14, 10, 24))


def resized(folder: Path, x: np.ndarray, **keys: Any) -> np.ndarray:
    return run_plan(folder, {"x": x}, [{"resize_": {"target": "x", **keys}}])["x"]


@pytest.mark.parametrize("antialias", [True, False], ids=["smoothed", "plain"])
@pytest.mark.parametrize("shape", [(1, 24, 16, 24), (1, 7, 5, 24), (2, 20, 9, 30)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_plan_has_the_bits_of_the_function(
    tmp_path: Path, method: str, shape: tuple[int, ...], antialias: bool
) -> None:
    found = resized(tmp_path, TABLE, shape=list(shape), method=method, antialias=antialias)
    np.testing.assert_array_equal(found, jax.image.resize(TABLE, shape, method, antialias=antialias))


def test_small_floats_are_rounded_once(tmp_path: Path) -> None:
    small = TABLE.astype(jnp.bfloat16)
    found = resized(tmp_path, small, shape=[1, 24, 16, -1], method="bicubic")
    wanted = jax.image.resize(small.astype(np.float32), (1, 24, 16, 24), "bicubic")
    np.testing.assert_array_equal(found, np.asarray(wanted).astype(jnp.bfloat16))


def test_doubles_are_computed_in_double(tmp_path: Path) -> None:
    x = TABLE.astype(np.float64)
    found = resized(tmp_path, x, shape=[1, 24, 16, -1], method="bicubic")
    with jax.enable_x64(True):
        np.testing.assert_array_equal(found, jax.image.resize(x, (1, 24, 16, 24), "bicubic"))


def test_the_nearest_entry_is_the_one_that_jax_takes() -> None:
    sizes = [*range(1, 40), 196, 577, 729]
    for size in sizes:
        lengths = [n for n in sizes if n % 3 == size % 3]
        resized_at_once = jax.jit(lambda x, lengths=lengths: [jax.image.resize(x, (n,), "nearest") for n in lengths])
        for wanted, found in zip(lengths, map(np.asarray, resized_at_once(jnp.arange(size))), strict=True):
            ours = np.array(_nearest(size, wanted))
            # On the edge between two entries, JAX 0.12 takes the other one now and then.
            edge = (2 * np.arange(wanted) + 1) * size % (2 * wanted) == 0
            np.testing.assert_array_equal(ours[~edge], found[~edge], err_msg=f"{size} to {wanted}")
            assert (abs(ours - found) <= edge).all(), f"{size} to {wanted}"


def test_torchs_bicubic_is_the_method_of_its_name(tmp_path: Path) -> None:
    found = resized(tmp_path, TABLE, shape=[1, 24, 16, -1], method="bicubic-pytorch", antialias=False)
    x = torch.from_numpy(TABLE).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(x, size=(24, 16), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(found, wanted.permute(0, 2, 3, 1).numpy(), atol=2e-6)


def test_it_can_be_applied_to_arrays_under_jit_and_differentiated() -> None:
    plan = bs.load({"inputs": ["m::tree"], "transforms": [
        {"resize_": {"target": "x", "shape": [6, -1], "method": "bilinear"}}], "output": "out"})  # fmt: skip
    x = jnp.asarray(normal((3, 4)))
    np.testing.assert_array_equal(jax.jit(plan.apply)({"x": x})["x"], jax.image.resize(x, (6, 4), "bilinear"))
    slope = jax.grad(lambda x: plan.apply({"x": x})["x"].sum())(x)
    np.testing.assert_allclose(slope.sum(), 24, rtol=1e-6)
