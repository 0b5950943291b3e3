"""Elements at a place of the sorted order while JAX traces, against numpy's partition, for every dtype and choice of
axes; their gradients; and under `vmap`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from brainsurgery_jax.numerics.selecting import _by_sorting, select_at

RNG = np.random.default_rng(4)
SPECIAL = [0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, 3e38, -3e38]
DTYPES: dict[str, Any] = {
    "float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64,
    "int8": np.int8, "int32": np.int32, "int64": np.int64, "uint8": np.uint8, "uint32": np.uint32, "bool": np.bool_,
}  # fmt: skip


def drawn(dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    x = RNG.standard_normal(shape) * 60
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return np.clip(x, info.min, info.max).astype(dtype)
    if dtype is np.bool_:
        return x > 0
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def sorted_rows(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    left = [a for a in range(x.ndim) if a not in axes]
    rows = x.transpose(*left, *axes).reshape(*(x.shape[a] for a in left), -1)
    return np.sort(rows, axis=-1, kind="stable")


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_the_elements_are_those_of_numpy(name: str, axes: tuple[int, ...]) -> None:
    x = drawn(DTYPES[name], (4, 5, 6))
    rows = sorted_rows(x, axes)
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
    with jax.enable_x64(True):
        for place in (0, rows.shape[-1] // 2, rows.shape[-1] - 1):
            low, high = jax.jit(lambda x, p=place: select_at(x, p, axes))(x)
            for found, at in ((low, place), (high, min(place + 1, rows.shape[-1] - 1))):
                assert np.asarray(found).dtype == x.dtype
                np.testing.assert_array_equal(np.asarray(found), rows[..., at].reshape(shape))


def test_nan_makes_its_row_nan() -> None:
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    x[1, 2] = np.nan
    low, _ = jax.jit(lambda x: select_at(x, 3, (1,)))(x)
    np.testing.assert_array_equal(np.isnan(np.asarray(low))[:, 0], [False, True, False])
    grad = jax.grad(lambda x: select_at(x, 3, (1,))[0][0, 0])(x)
    assert np.isfinite(grad).all()


def test_equal_elements_share_the_gradient() -> None:
    x = jnp.asarray([3.0, 1.0, 2.0, 2.0, 5.0])
    grad = jax.grad(lambda x: select_at(x, 1, (0,))[0][0])(x)
    assert grad.tolist() == [0, 0, 0.5, 0.5, 0]
    assert not np.any(jax.hessian(lambda x: select_at(x, 1, (0,))[0][0])(x))


def test_infinity_has_no_gradient() -> None:
    x = jnp.asarray([np.inf, 1.0, -np.inf])
    assert not np.any(jax.grad(lambda x: select_at(x, 2, (0,))[0][0])(x))


def test_rows_are_mapped_over() -> None:
    x = RNG.standard_normal((5, 40)).astype(np.float32)
    low, high = jax.vmap(lambda row: select_at(row, 7, (0,)))(x)
    rows = np.sort(x, axis=1)
    np.testing.assert_array_equal(low[:, 0], rows[:, 7])
    np.testing.assert_array_equal(high[:, 0], rows[:, 8])
    grads = jax.vmap(jax.grad(lambda row: select_at(row, 7, (0,))[0][0]))(x)
    np.testing.assert_array_equal(np.argmax(np.asarray(grads), axis=1), np.argsort(x, axis=1)[:, 7])


def test_there_may_be_no_rows():
    for by in (select_at, _by_sorting):
        low, high = jax.jit(lambda x, by=by: by(x, 0, (1,)))(jnp.zeros((0, 5)))
        assert low.shape == high.shape == (0, 1)
