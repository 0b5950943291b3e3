"""The largest eigenvalues of a symmetric matrix: as good as LAPACK's, and never without the ones that were missed."""

from __future__ import annotations

import numpy as np
import pytest

from brainsurgery_jax.numerics import leading
from brainsurgery_jax.numerics.lapack import is_positive_definite

SIDE, RANK, TOL = 400, 12, 1e-4


def basis(seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((SIDE, SIDE)))[0]


def with_eigenvalues(values: np.ndarray) -> np.ndarray:
    q = basis()
    return ((q * values) @ q.T).astype(np.float32)


def normal(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((SIDE, leading.WIDTH), np.float32)


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0, 4.0])
def test_what_is_captured_is_within_the_tolerance_of_the_most_that_can_be(power: float):
    values = np.arange(1.0, SIDE + 1) ** -power
    c = with_eigenvalues(values)
    found = leading.leading(c, RANK, np.trace(c), TOL, normal())
    captured = np.trace(found.vectors.T.astype(np.float64) @ c @ found.vectors)
    left = values[RANK:].sum()
    assert values[:RANK].sum() - captured <= 2 * TOL * left + 1e-6
    assert np.abs(found.vectors.T @ found.vectors - np.eye(RANK)).max() < 1e-5


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
def test_no_other_eigenvalue_is_above_the_rest(power: float):
    values = np.arange(1.0, SIDE + 1) ** -power
    found = leading.leading(c := with_eigenvalues(values), RANK, np.trace(c), TOL, normal())
    assert values[RANK] <= found.rest + 1e-6


def test_an_eigenvalue_that_the_process_cannot_meet_is_found_all_the_same():
    values = np.arange(1.0, SIDE + 1) ** -1.0
    c = np.diag(values).astype(np.float32)  # exact zeros: rounding cannot bring it back
    blind = normal()
    blind[0] = 0
    assert leading._lanczos(c, RANK, np.trace(c), TOL, blind) is None
    found = leading.leading(c, RANK, np.trace(c), TOL, blind)
    assert found.theta == pytest.approx(values[:RANK], rel=1e-5)


def test_more_equal_eigenvalues_than_a_block_has_columns_are_all_found():
    values = np.concatenate([np.ones(3 * leading.WIDTH), np.full(SIDE - 3 * leading.WIDTH, 1e-3)])
    c = with_eigenvalues(values)
    found = leading.leading(c, RANK * 4, np.trace(c), TOL, normal())
    assert np.sum(found.theta) == pytest.approx(3 * leading.WIDTH, rel=1e-5)


def test_few_of_many_are_left_to_the_lanczos_process_and_many_of_few_to_lapack():
    assert leading.starts(2048, 64)
    assert not leading.starts(300, 64)


def test_a_matrix_is_told_to_be_positive_definite_by_its_least_eigenvalue():
    values = np.linspace(0.1, 1, SIDE)
    assert is_positive_definite(with_eigenvalues(values))
    values[7] = -0.05
    assert not is_positive_definite(with_eigenvalues(values))
