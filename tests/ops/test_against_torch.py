"""Elementwise arithmetic against torch, bit for bit: every value of the small dtypes, hard values of the large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from brainsurgery_jax.dtypes import BY_NAME, DType
from brainsurgery_jax.engine.compute.kernels import compiled
from brainsurgery_jax.op import Kernel
from brainsurgery_jax.ops import elementwise
from tests.checkpoints import FLOATS, INTEGERS, np_dtype, same

TORCH_FLOATS = [BY_NAME[n] for n in ("float16", "bfloat16", "float32", "float64")]
BYTES = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
RNG = np.random.default_rng(0)


def every_value(dtype: DType) -> np.ndarray:
    """All values of a float of 8 or 16 bits; of larger ones normal, subnormal, huge and special ones, and ties."""
    if dtype.bits <= 16:
        return np.arange(1 << dtype.bits).astype(f"u{dtype.bits // 8}").view(np_dtype(dtype))
    short = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        small = [np.sort(x[np.isfinite(x)]) for x in (short.view(t).astype(float) for t in ("f2", ml_dtypes.bfloat16))]
        ties = np.concatenate([(x[1:] + x[:-1])[::5] / 2 for x in small])
        wide = RNG.standard_normal(20_000) * np.exp2(RNG.integers(-150, 128, 20_000).astype(float))
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65519.999, 65520.0, 3.4028235677973366e38, 1e-45, 7e-46, 1e300]
        return np.concatenate([special, ties, ties * (1 + 1e-9), wide]).astype(np_dtype(dtype))


def as_float(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return x.astype(float)


def to_torch(x: np.ndarray) -> torch.Tensor:
    """The same bytes as a torch tensor."""
    bits = torch.from_numpy(x.view(f"u{x.itemsize}").copy())
    return bits.view(getattr(torch, x.dtype.name))


def to_numpy(x: torch.Tensor, dtype: DType) -> np.ndarray:
    return x.contiguous().view(BYTES[x.element_size()]).numpy().view(np_dtype(dtype))


def run(kernel: Kernel, *arrays: np.ndarray, static: tuple[tuple[str, Any], ...] = (), **numbers: float) -> np.ndarray:
    """The kernel as the engine runs it."""
    with jax.enable_x64(True):
        made = compiled(kernel, static)(list(arrays), {k: np.float64(v) for k, v in numbers.items()})
    return np.asarray(made[0] if kernel.guarded else made)


@pytest.mark.parametrize("dtype", TORCH_FLOATS, ids=str)
@pytest.mark.parametrize("by", [0.3, -1.0, 1e-3, 3.0])
def test_scaling_rounds_once_as_torch_does(dtype: DType, by: float) -> None:
    x = _normal(every_value(dtype), dtype)
    assert same(run(elementwise.scale, x, by=by), to_numpy(to_torch(x) * by, dtype))


@pytest.mark.parametrize("dtype", TORCH_FLOATS, ids=str)
@pytest.mark.parametrize(
    ("kernel", "other"),
    [
        pytest.param(elementwise.add, torch.add, id="add"),
        pytest.param(elementwise.subtract, torch.subtract, id="subtract"),
        pytest.param(elementwise.multiply, torch.multiply, id="multiply"),
    ],
)
def test_arithmetic_on_floats_is_torchs(kernel: Kernel, other: Callable[..., torch.Tensor], dtype: DType) -> None:
    x = _normal(every_value(dtype), dtype)
    y = np.roll(x, 12_345 % len(x))
    assert same(run(kernel, x, y), to_numpy(other(to_torch(x), to_torch(y)), dtype))


def _normal(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Without what no wider dtype rescues from XLA's flushing to zero: float64 near the end of its range."""
    return x[~(np.abs(x) < 1e-140)] if dtype.name == "float64" else x


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", ["add", "subtract", "multiply"])
def test_integers_wrap(dtype: DType, name: str) -> None:
    info = np.iinfo(np_dtype(dtype))
    x = RNG.integers(info.min, info.max, 500, np_dtype(dtype), endpoint=True)
    y = RNG.integers(info.min, info.max, 500, np_dtype(dtype), endpoint=True)
    exact = {"add": int.__add__, "subtract": int.__sub__, "multiply": int.__mul__}[name]
    wrapped = [(exact(int(a), int(b)) - info.min) % (1 << info.bits) + info.min for a, b in zip(x, y, strict=True)]
    assert run(getattr(elementwise, name), x, y).tolist() == wrapped


@pytest.mark.parametrize("dtype", TORCH_FLOATS, ids=str)
@pytest.mark.parametrize("bounds", [(-0.3, 0.3), (0.0, None), (None, 1e-3)])
def test_clamping_rounds_its_bounds_and_keeps_nan(dtype: DType, bounds: tuple[float | None, float | None]) -> None:
    x = _normal(every_value(dtype), dtype)
    x = x[as_float(x) != 0]  # which of -0 and 0 is the larger, nobody promises
    low, high = bounds
    given = {k: v for k, v in (("min_", low), ("max_", high)) if v is not None}
    # torch compares with a bound in the tensor's dtype, except that its vectors of float64 and float32 hold it exactly.
    own = [None if b is None else float(np.asarray(b).astype(np_dtype(dtype))) for b in bounds]
    static = tuple((k, None) for k in ("min_", "max_") if k not in given)
    assert same(run(elementwise.clamp, x, static=static, **given), to_numpy(to_torch(x).clamp(*own), dtype))


def test_a_bound_beyond_a_dtype_without_infinity_bounds_nothing() -> None:
    x = every_value(BY_NAME["float8_e4m3fn"])
    assert same(run(elementwise.clamp, x, min_=-1000, max_=1000), x)


def test_a_whole_bound_beyond_an_integer_dtype_bounds_nothing() -> None:
    x = np.arange(-128, 128).astype(np.int8)
    assert run(elementwise.clamp, x, min_=-1000, max_=1e30).tolist() == x.tolist()


@pytest.mark.parametrize("target", TORCH_FLOATS, ids=str)
@pytest.mark.parametrize("source", [d for d in FLOATS if d.name != "float8_e8m0fnu"], ids=str)
def test_casting_between_floats_rounds_as_torch_does(source: DType, target: DType) -> None:
    x = every_value(source)
    found = run(elementwise.cast, x, static=(("dtype", target),))
    assert same(found, to_numpy(to_torch(x).to(getattr(torch, target.name)), target))


@pytest.mark.parametrize("target", [d for d in FLOATS if d.bits == 8], ids=str)
@pytest.mark.parametrize("source", [d for d in FLOATS if d.bits <= 32], ids=str)
def test_casting_to_eight_bits_is_the_rounding_of_ml_dtypes(source: DType, target: DType) -> None:
    """Where nothing overflows: what becomes of the rest is in `test_overflow.py`."""
    x = every_value(source)
    with np.errstate(all="ignore"):
        wanted = x.astype(np.float32).astype(np_dtype(target))
    assert same(run(elementwise.cast, x, static=(("dtype", target), ("overflow", "nan"))), wanted)


@pytest.mark.parametrize("source", TORCH_FLOATS, ids=str)
def test_casting_to_bool_asks_whether_a_value_is_not_zero(source: DType) -> None:
    x = every_value(source)
    found = run(elementwise.cast, x, static=(("dtype", BY_NAME["bool"]),))
    assert found.tolist() == to_torch(x).to(torch.bool).tolist()


@pytest.mark.parametrize("target", INTEGERS, ids=str)
@pytest.mark.parametrize("source", TORCH_FLOATS, ids=str)
def test_casting_to_integers_cuts_towards_zero(source: DType, target: DType) -> None:
    info, x = np.iinfo(np_dtype(target)), every_value(source)
    wide = as_float(x)
    held = (wide > info.min - 1.0) & (wide < float(info.max))
    assert run(elementwise.cast, x[held], static=(("dtype", target),)).tolist() == [int(v) for v in wide[held]]


@pytest.mark.parametrize("target", INTEGERS, ids=str)
@pytest.mark.parametrize("source", INTEGERS, ids=str)
def test_casting_between_integers_wraps_if_a_plan_says_so(source: DType, target: DType) -> None:
    info = np.iinfo(np_dtype(source))
    x = RNG.integers(info.min, info.max, 300, np_dtype(source), endpoint=True)
    found = run(elementwise.cast, x, static=(("dtype", target), ("overflow", "wrap")))
    assert same(found, x.astype(np_dtype(target)))


def test_bools_are_ored_and_anded() -> None:
    x, y = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    assert run(elementwise.add, x, y).tolist() == [False, True, True, True]
    assert run(elementwise.multiply, x, y).tolist() == [False, False, False, True]
