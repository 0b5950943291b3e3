"""`plan.apply` within a trace takes the ladder of the platform that the trace is compiled for. No device is needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.numerics import filtered
from brainsurgery_jax.ops.lowrank import factors_within, truncate_within
from tests.checkpoints import normal
from tests.engine.test_device_kernels import FACTORIZATION, complaints

FACTORS = {"phlora": {"target": "w", "target_a": "a", "target_b": "b", "rank": 8}}
IN_PLACE = {"phlora_": {"target": "w", "rank": 8}}
RANDOMIZED = {"phlora_": {"target": "w", "rank": 8, "method": "randomized"}}


def export(step: dict[str, Any], platform: str, dtype: Any = jnp.float32) -> str:
    """The StableHLO of a plan of one step for a platform."""
    plan = bs.load({"inputs": ["model::given"], "transforms": [step]})
    function = jax.jit(lambda tree: plan.apply(tree, checks="skip"))
    tree = {"w": jax.ShapeDtypeStruct((512, 384), dtype)}
    return jax.export.export(function, platforms=[platform])(tree).mlir_module()


@pytest.mark.parametrize(
    ("platform", "step", "dtype"),
    [
        ("cuda", FACTORS, jnp.bfloat16),
        ("cuda", IN_PLACE, jnp.float32),
        ("tpu", FACTORS, jnp.float32),
        ("tpu", IN_PLACE, jnp.bfloat16),
        ("tpu", RANDOMIZED, jnp.float16),
    ],
)
def test_an_accelerator_gets_no_float64_and_no_large_factorization(platform: str, step: dict[str, Any], dtype: Any):
    assert complaints(export(step, platform, dtype)) == []


def test_the_cpu_keeps_the_ladder_of_the_host():
    text = export(IN_PLACE, "cpu")
    assert "float64" in complaints(text)
    assert FACTORIZATION.search(text)


def test_an_exact_factorization_is_the_full_one_on_every_platform():
    assert complaints(export({"phlora_": {"target": "w", "rank": 8, "method": "exact"}}, "cuda")) != []


# --- Values, computed here by the kernel of accelerators --------------------------------------------------------------


def spectrum(values: np.ndarray, rows: int = 384) -> np.ndarray:
    """A matrix with these singular values."""
    n = len(values)
    u, v = (np.linalg.qr(normal((m, n), seed=seed))[0] for seed, m in enumerate((rows, n)))
    return np.asarray((u * values) @ v.T, np.float32)


@cache
def compile_at_rank_8(kernel: Kernel, method: str) -> Callable[..., Any]:
    """The kernel at rank 8 with a key, as `f(matrix, tol)`."""
    key = {"key_high": np.float32(3), "key_low": np.float32(5)}
    return jax.jit(lambda x, tol: kernel.fn(x, rank=8, method=method, tol=tol, **key))


def truncate(x: Any, tol: float = 1e-4, method: str = "auto") -> Any:
    return compile_at_rank_8(truncate_within, method)(jnp.asarray(x), np.float32(tol))


def factorize(x: Any) -> Any:
    return compile_at_rank_8(factors_within, "auto")(jnp.asarray(x), np.float32(1e-4))


FALLING = {"fast": np.arange(1.0, 257) ** -2, "slow": np.arange(1.0, 257) ** -0.5}


@pytest.mark.parametrize("decay", FALLING.values(), ids=FALLING)
def test_what_is_accepted_is_within_the_tolerance_of_the_best_approximation(decay: np.ndarray):
    x = spectrum(decay)
    low, accepted = truncate(x)
    best = np.sqrt(np.sum(decay[8:] ** 2))
    assert accepted
    assert np.linalg.norm(np.float64(low) - x) <= (1 + 1.1e-4) * best


@pytest.mark.parametrize("turned", [False, True])
def test_the_factors_multiply_to_the_truncated_matrix(turned: bool):
    x = spectrum(FALLING["fast"]).T if turned else spectrum(FALLING["fast"])
    (b, a), accepted = factorize(x)
    assert accepted and b.shape == (x.shape[0], 8) and a.shape == (8, x.shape[1])
    np.testing.assert_allclose(b @ a, truncate(x)[0], atol=1e-5)


def test_a_matrix_that_no_round_certifies_is_not_accepted():
    x, impossible = spectrum(FALLING["slow"]), 1e-15
    assert not truncate(x, impossible)[1]
    assert truncate(x, impossible, "randomized")[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["auto", "randomized"])
def test_a_matrix_that_is_not_finite_is_not_accepted(method: str, bad: float):
    x = spectrum(FALLING["fast"])
    x[3, 4] = bad
    assert not truncate(x, method=method)[1]


def test_the_rounds_in_one_loop_reach_what_they_reach_one_by_one():
    x, key = jnp.asarray(spectrum(FALLING["slow"])), jax.random.key(7)
    state, found = None, None
    for degrees in filtered.DEGREES:
        state = filtered.reach(x, state, 8, degrees, key)
        found = filtered.truncation(x, state, 8)
        if found.excess <= 1e-4:
            break
    assert found is not None
    at_once = filtered.climb(x, 8, jnp.float32(1e-4), key)
    np.testing.assert_allclose(at_once.xv @ at_once.v.T, found.xv @ found.v.T, atol=1e-5)


def test_a_batch_of_matrices_is_certified_one_by_one():
    xs = jnp.stack([jnp.asarray(spectrum(decay)) for decay in FALLING.values()])
    low, accepted = jax.vmap(truncate)(xs)
    assert accepted.tolist() == [True, True]
    for x, each in zip(xs, low, strict=True):
        np.testing.assert_allclose(each, truncate(x)[0], atol=1e-4)


def test_the_derivative_is_that_of_the_full_decomposition():
    x = jnp.asarray(spectrum(FALLING["fast"]))

    def full(x: jax.Array) -> jax.Array:
        u, s, vh = jnp.linalg.svd(x, full_matrices=False)
        return (u[:, :8] * s[None, :8]) @ vh[:8]

    given = jax.grad(lambda x: jnp.sum(jnp.square(truncate(x)[0])))(x)
    wanted = jax.grad(lambda x: jnp.sum(jnp.square(full(x))))(x)
    np.testing.assert_allclose(given, wanted, atol=1e-3)
