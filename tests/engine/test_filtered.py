"""The method of accelerators against numpy's SVD in float64: every bound that it certifies holds."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainsurgery_jax.dtypes import FLOAT32, FLOAT64, Aval
from brainsurgery_jax.numerics import filtered

RANK, M, N = 16, 192, 160
K = np.arange(1.0, N + 1)
SPECTRA = {
    "gentle": K**-0.5,
    "steep": K**-2,
    "exponential": np.exp(-K / 4),
    "equal": np.where(K <= RANK, 1.0, 1e-3),
    "many equal": np.where(K <= 3 * RANK, 1.0, 1e-3),
    "few": np.where(K <= 5, 1 / K, 0),
    "exact rank": np.where(K <= RANK, 1 / K, 0),
    "flat": np.ones(N),
}


@partial(jax.jit, static_argnums=3)
def climb(x: jax.Array, state: filtered.Subspace, key: jax.Array, degrees: tuple[int, ...]):
    with jax.default_matmul_precision("highest"):
        reached = filtered.reach(x, state, RANK, degrees, key)
        return reached, filtered.truncation(x, reached, RANK)


def judged(x: jax.Array) -> list[tuple[float, float]]:
    """The certified and the true excess of each round until one is certified within 1e-4."""
    exact = np.asarray(x, np.float64)
    least = np.sqrt((np.linalg.svd(exact, compute_uv=False)[RANK:] ** 2).sum())
    floor = 1e-5 * np.linalg.norm(exact)  # float32's own rounding
    start = jax.random.normal(jax.random.key(7), (N, filtered.width(RANK)), np.float32) / np.float32(N**0.5)
    state = filtered.Subspace(start, filtered.multiply(x, start), jnp.zeros(filtered.width(RANK), np.float32))
    found = []
    for degrees in filtered.DEGREES:
        state, t = climb(x, state, jax.random.key(3), degrees)
        error = np.linalg.norm(exact - np.asarray(t.xv, np.float64) @ np.asarray(t.v, np.float64).T)
        found.append((float(t.excess), max(error, floor) / max(least, floor) - 1))
        if t.excess <= 1e-4:
            break
    return found


def matrix(spectrum: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, N)))[0] for n in (M, N))
    return (u * spectrum) @ v.T


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_true_excess_is_within_the_certified_one(name: str, dtype: type):
    found = judged(jnp.asarray(matrix(SPECTRA[name]).astype(dtype)))
    assert found[-1][0] <= 1e-4, "no round certifies"
    assert all(true <= bound + 1e-6 for bound, true in found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, 1e-30], ids=str)
def test_what_float32_cannot_tell_is_never_certified(bad: float):
    x = matrix(SPECTRA["gentle"]).astype(np.float32)
    x = x * np.float32(bad) if np.isfinite(bad) else np.where(x == x.max(), np.float32(bad), x)
    _, t = climb(jnp.asarray(x), *begin(x), filtered.DEGREES[0])
    assert not bool(t.excess <= 1e9)


def begin(x: np.ndarray) -> tuple[filtered.Subspace, jax.Array]:
    start = np.random.default_rng(1).standard_normal((N, filtered.width(RANK)), np.float32)
    return filtered.Subspace(jnp.asarray(start), jnp.asarray(x @ start), jnp.zeros(start.shape[1], np.float32)), (
        jax.random.key(3)
    )


def test_a_product_with_bfloat16_is_as_exact_as_one_in_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((256, 128)), jnp.bfloat16)
    y = jnp.asarray(rng.standard_normal((128, 8)), jnp.float32)
    exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
    made = filtered.multiply(x, y), x.astype(np.float32) @ y
    own, plain = (np.abs(np.asarray(product) - exact).max() for product in made)
    assert own <= 2 * plain


def test_it_is_for_matrices_of_some_size_and_float32_at_most():
    assert filtered.fits(Aval((512, 400), FLOAT32), 64)
    assert not filtered.fits(Aval((512, 200), FLOAT32), 64)
    assert not filtered.fits(Aval((512, 400), FLOAT64), 64)
    assert not filtered.fits(Aval((4096, 4096), FLOAT32), 256)
