"""Decompositions on the host: in the matrix's own precision, as numpy's in double precision are, and side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from brainsurgery_jax.numerics import lapack
from brainsurgery_jax.numerics.lapack import svd, top_eigenvectors

EPS = {"float32": 2e-6, "float64": 1e-14}
DTYPES = pytest.mark.parametrize("dtype", EPS)
ORDERS = pytest.mark.parametrize("lay", [np.ascontiguousarray, np.asfortranarray, lambda x: x[::-1]], ids="CFv")


def normal(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@DTYPES
@ORDERS
@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (1, 1), (40, 40), (300, 90)])
def test_the_thin_svd_gives_the_matrix_back(shape: tuple[int, int], lay: Callable[[Any], Any], dtype: str) -> None:
    x = lay(normal(shape, dtype))
    given = x.copy()
    u, s, vh = svd(x)
    top = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    assert u.dtype == s.dtype == vh.dtype == np.dtype(dtype)
    np.testing.assert_allclose((u * s) @ vh, x, atol=20 * EPS[dtype] * top[0])
    np.testing.assert_allclose(s, top, atol=20 * EPS[dtype] * top[0])
    np.testing.assert_array_equal(x, given)  # LAPACK overwrites what it is given: not what is the caller's


@DTYPES
@pytest.mark.parametrize("count", [1, 5, 60])
def test_the_largest_eigenvalues_come_first_with_orthonormal_vectors(count: int, dtype: str) -> None:
    x = normal((90, 60), dtype)
    gram = x.T @ x
    values, vectors = top_eigenvectors(gram, count)
    every = np.linalg.eigvalsh(gram.astype(np.float64))[::-1]
    np.testing.assert_allclose(values, every[:count], atol=20 * EPS[dtype] * every[0])
    np.testing.assert_allclose(gram @ vectors, vectors * values, atol=20 * EPS[dtype] * every[0])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=50 * EPS[dtype])


def test_equal_eigenvalues_have_orthonormal_vectors() -> None:
    _, vectors = top_eigenvectors(np.kron(np.eye(48), np.ones((2, 2))).astype(np.float32), 48)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(48), atol=1e-4)


def test_complex_matrices_are_decomposed_too() -> None:
    x = normal((5, 3), "float64") + 1j * normal((5, 3), "float64")[::-1]
    u, s, vh = svd(x)
    np.testing.assert_allclose((u * s) @ vh, x, atol=1e-12)


def test_what_lapack_cannot_do_is_an_error() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="LAPACK's sgesdd returned"):
        svd(np.full((3, 3), np.nan, np.float32))


def test_threads_get_the_bits_that_one_alone_gets() -> None:
    xs = [normal((120, 80), "float32") + n for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(svd, xs))
    for x, parts in zip(xs, together, strict=True):
        for alone, other in zip(svd(x), parts, strict=True):
            np.testing.assert_array_equal(alone, other)


@pytest.mark.parametrize(
    ("dtype", "n", "seed", "count"), [("float32", 40, 5, 11), ("float64", 40, 6, 11), ("float64", 60, 0, 7)]
)
def test_of_equal_eigenvalues_as_many_are_found_as_were_asked_for(dtype: str, n: int, seed: int, count: int) -> None:
    """LAPACK finds fewer of these, and leaves the rest of the result as the memory was."""
    noise = np.tril(np.random.default_rng(seed).integers(-3, 4, (n, n))) * np.finfo(dtype).eps
    x = (np.eye(n) + noise + np.tril(noise, -1).T).astype(dtype)
    values, vectors = top_eigenvectors(x, count)
    np.testing.assert_allclose(values, np.ones(count), atol=20 * EPS[dtype])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=20 * EPS[dtype])


def test_eigenvectors_that_were_not_found_are_never_results(monkeypatch: pytest.MonkeyPatch) -> None:
    real = lapack._last_eigenvectors

    def find_fewer(x: np.ndarray, most: int) -> tuple[int, np.ndarray, np.ndarray]:
        found, values, vectors = real(x, most)
        return found - (most < len(x)), values, np.where(np.arange(most)[:, None] < most - 1, vectors, np.nan)

    x = normal((40, 30), "float64")
    expected = top_eigenvectors(x.T @ x, 4)
    monkeypatch.setattr(
        lapack, "_last_eigenvectors", lambda x, most: find_fewer(x, most) if most < 30 else real(x, most)
    )
    for found, wanted in zip(top_eigenvectors(x.T @ x, 4), expected, strict=True):
        np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-9)
    monkeypatch.setattr(lapack, "_last_eigenvectors", lambda x, most: (most - 1, *real(x, most)[1:]))
    with pytest.raises(np.linalg.LinAlgError, match="found 29 of 30"):
        top_eigenvectors(x.T @ x, 4)
