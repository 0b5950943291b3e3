"""Low rank by the cheapest certified method: the bound holds, the fall-back is exact, neighbours change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.engine.events import Factorized
from brainsurgery_jax.numerics import factor
from brainsurgery_jax.numerics.factor import SLAB
from tests.checkpoints import plan_of, read, run_plan, same

SIDE = 320  # above the size that is always factorized exactly


def matrix(rows: int, columns: int, power: float, seed: int = 0) -> np.ndarray:
    """A matrix with singular values k**-power."""
    rng = np.random.default_rng(seed)
    k = min(rows, columns)
    u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in (rows, columns))
    return ((u * np.arange(1.0, k + 1) ** -power) @ v.T).astype(np.float32)


def phlora(**keys: object) -> dict[str, dict[str, object]]:
    return {"phlora": {"target": "(.+)", "target_a": r"\1.A", "target_b": r"\1.B", **keys}}


def told(folder: Path, tensors: dict[str, np.ndarray], **keys: object) -> Iterator[tuple[Factorized, float]]:
    """Every factorization, with its true excess error over the optimum."""
    events: list[object] = []
    plan = plan_of(folder, tensors, phlora(**keys))
    bs.load(plan).run(durable=False, listen=events.append)
    made = read(plan["output"]["path"])
    for event in events:
        if isinstance(event, Factorized):
            (name,) = event.names
            x = tensors[name].astype(np.float64)
            rank = made[f"{name}.A"].shape[0]
            best = np.sqrt((np.linalg.svd(x, compute_uv=False)[rank:] ** 2).sum())
            error = np.linalg.norm(x - made[f"{name}.B"].astype(np.float64) @ made[f"{name}.A"])
            yield event, error / best - 1


@pytest.mark.parametrize("rank", [4, 16])
def test_the_certified_bound_holds_and_keeps_the_tolerance(tmp_path: Path, rank: int):
    tensors = {
        f"{shape}-{p}": matrix(*shape, p) for shape in ((SIDE, SIDE), (512, SIDE), (SIDE, 700)) for p in (0.5, 1, 2)
    }
    for event, excess in told(tmp_path, tensors, rank=rank):
        assert excess <= event.facts["excess"] + 1e-6, event  # 1e-6: float32 rounding of the factors themselves
        assert event.facts["excess"] <= 1e-4, event


def test_a_large_square_matrix_with_a_falling_spectrum_is_done_by_block_lanczos(tmp_path: Path):
    ((event, excess),) = told(tmp_path, {"w": matrix(900, 900, 1.0)}, rank=8)
    assert event.method.startswith("lanczos")
    assert excess <= event.facts["excess"] + 1e-6


def test_a_tall_matrix_with_a_falling_spectrum_is_done_by_its_gram_matrix(tmp_path: Path):
    ((event, excess),) = told(tmp_path, {"w": matrix(2000, SIDE, 1.0)}, rank=8)
    assert event.method == "quick-gram"
    assert excess <= event.facts["excess"] + 1e-6


def test_a_spectrum_without_a_fall_is_done_by_the_gram_matrix(tmp_path: Path):
    flat = np.linalg.qr(np.random.default_rng(0).standard_normal((SIDE, SIDE)))[0].astype(np.float32)
    ((event, excess),) = told(tmp_path, {"w": flat}, rank=64)
    assert event.method == "quick-gram"
    assert abs(excess) < 1e-6


def test_a_spectrum_too_steep_for_products_in_float32_falls_back_to_float64(tmp_path: Path):
    ((event, excess),) = told(tmp_path, {"w": matrix(3 * SIDE, SIDE, 3.0)}, rank=64)
    assert event.method == "gram"
    assert excess < 1e-3  # of an error near float32's own rounding


def test_a_very_tall_matrix_is_summed_in_slabs_to_the_same_optimum(tmp_path: Path):
    rng = np.random.default_rng(0)
    tall = rng.standard_normal((3 * SLAB + 77, SIDE)).astype(np.float32)
    ((event, excess),) = told(tmp_path, {"w": tall}, rank=100)
    assert event.method == "quick-gram"
    assert abs(excess) < 1e-6


def test_the_exact_method_is_taken_when_asked_for(tmp_path: Path):
    ((event, _),) = told(tmp_path, {"w": matrix(SIDE, SIDE, 1.0)}, rank=8, method="exact")
    assert event.method == "exact"


def test_the_randomized_method_reports_its_bound_and_never_falls_back(tmp_path: Path):
    noise = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    ((event, excess),) = told(tmp_path, {"w": noise}, rank=8, method="randomized", tol=1e-12)
    assert event.method.startswith("lanczos")
    assert excess <= event.facts["excess"] + 1e-6


def test_a_matrix_of_that_very_rank_needs_no_fall_back(tmp_path: Path):
    rng = np.random.default_rng(0)
    low = (rng.standard_normal((SIDE, 4)) @ rng.standard_normal((4, SIDE))).astype(np.float32)
    out = run_plan(tmp_path, {"w": low}, phlora(rank=8))
    assert np.abs(out["w.B"] @ out["w.A"] - low).max() < 1e-4


@pytest.mark.parametrize("copies", [12, 48])
def test_more_equal_singular_values_than_a_block_has_columns_are_all_found(tmp_path: Path, copies: int):
    rng = np.random.default_rng(0)
    x = np.kron(np.eye(copies, dtype=np.float32), matrix(16, 16, 1.0))
    x = x[rng.permutation(len(x))][:, rng.permutation(len(x))].copy()
    x = np.pad(x, ((0, max(0, SIDE - len(x))),) * 2)
    for event, excess in told(tmp_path, {"w": x}, rank=64):
        assert excess <= max(event.facts["excess"], 1e-4) + 1e-6


def test_values_far_from_one_are_factorized_as_well(tmp_path: Path):
    tensors = {"tiny": matrix(SIDE, SIDE, 1.0) * np.float32(1e-25), "huge": matrix(SIDE, SIDE, 1.0) * np.float32(1e25)}
    for event, excess in told(tmp_path, tensors, rank=8):
        assert excess <= 1e-4, event


@pytest.mark.parametrize("method", ["auto", "exact", "randomized"])
def test_nan_is_refused_whatever_the_method(tmp_path: Path, method: str):
    x = matrix(SIDE, SIDE, 1.0)
    x[3, 4] = np.nan
    with pytest.raises(bs.PlanError, match="NaN or infinity"):
        run_plan(tmp_path, {"w": x}, phlora(rank=8, method=method))


def test_low_precision_is_factorized_in_float32_a_slab_at_a_time(tmp_path: Path):
    x = matrix(SLAB + 77, SIDE, 1.0).astype(ml_dtypes.bfloat16)
    for event, excess in told(tmp_path, {"w": x}, rank=8):
        assert excess <= 1e-2, event  # the factors are rounded to bfloat16 in the end


def test_factors_do_not_depend_on_what_else_is_in_the_plan(tmp_path: Path):
    one, two = matrix(SIDE, SIDE, 1.0, 1), matrix(SIDE, SIDE, 1.0, 2)
    together, alone = (run_plan(tmp_path, t, phlora(rank=8)) for t in ({"one": one, "two": two}, {"two": two}))
    assert same(together["two.A"], alone["two.A"])
    assert same(together["two.B"], alone["two.B"])


def test_the_sign_of_factors_is_fixed(tmp_path: Path):
    x = matrix(SIDE, SIDE, 1.0)
    plus, minus = (run_plan(tmp_path, {"w": w}, phlora(rank=8)) for w in (x, -x))
    top = plus["w.B"][np.abs(plus["w.B"]).argmax(0), np.arange(8)]
    assert (top > 0).all()
    np.testing.assert_allclose(plus["w.B"], minus["w.B"], atol=1e-5)
    np.testing.assert_allclose(plus["w.A"], -minus["w.A"], atol=1e-5)


def test_rewriting_in_place_is_the_product_of_the_factors(tmp_path: Path):
    x = matrix(SIDE, 500, 1.0)
    factors = run_plan(tmp_path, {"w": x}, phlora(rank=8))
    in_place = run_plan(tmp_path, {"w": x}, {"phlora_": {"target": "w", "rank": 8}})
    np.testing.assert_allclose(in_place["w"], factors["w.B"] @ factors["w.A"], atol=1e-5)


@pytest.mark.parametrize("rows", [400, 2000])
@pytest.mark.parametrize("columns", [64, 256])
def test_a_bound_allows_for_what_is_lost_beside_one_large_row(rows: int, columns: int):
    """Half of the second singular value is lost beside a row of ones, so that a third, which is smaller, is taken."""
    half = columns // 2
    x = np.zeros((rows, columns), np.float32)
    x[:, :half] = 2.0**-12 * np.where(np.arange(half) % 2, 1, -1)
    x[0, :half] = 1
    true = np.linalg.svd(x.astype(np.float64), compute_uv=False)[1] ** 2
    lost = np.linalg.eigvalsh((x.T @ x).astype(np.float64))[-2]
    x[5, half] = np.sqrt((true + min(lost, 0.9 * true)) / 2)
    found = factor.quick_gram(x, 2, 1e-4, (1.0, 2.0))
    basis, _ = np.linalg.qr(found.v.astype(np.float64))
    left = np.linalg.norm(x - x @ basis @ basis.T)
    least = np.linalg.norm(np.linalg.svd(x.astype(np.float64), compute_uv=False)[2:])
    assert left / least - 1 <= found.excess
