"""Floats of every width from floats of every other, on numpy arrays: the bits that compiled code gives."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import jax
import numpy as np
import pytest

from brainsurgery_jax.dtypes import BY_NAME, DType
from brainsurgery_jax.engine.compute.kernels import compiled
from brainsurgery_jax.numerics.lookup import PIECE, look_up, patterns
from brainsurgery_jax.numerics.rounding import cast_to
from brainsurgery_jax.ops import elementwise
from tests.checkpoints import FLOATS, bits, normal, np_dtype, run_plan, same

SHORT = [d for d in FLOATS if d.bits <= 16]
PAIRS = [pytest.param(a, b, id=f"{a}-{b}") for a, b in permutations(FLOATS, 2)]
BF16, F16, F32 = (BY_NAME[n] for n in ("bfloat16", "float16", "float32"))


def compiled_cast(x: np.ndarray, dtype: DType) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(compiled(elementwise.cast, (("dtype", dtype),))([x], {})[0])


def converted_quietly(x: np.ndarray, dtype: DType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return cast_to(x, dtype)[0]


def telling(dtype: DType) -> np.ndarray:
    """All values of a short dtype; of a longer one every sign, exponent and eleven bits of the significand, with what
    is just below, at and above halfway to the next of any width, infinities, subnormals and NaNs."""
    if dtype.bits <= 16:
        return patterns(np_dtype(dtype))
    upper = np.arange(1 << 20, dtype=np.uint32) << np.uint32(12)
    floats = np.concatenate([upper | np.uint32(low) for low in (0, 1, 0x7FF, 0xFFF)]).view(np.float32)
    if dtype.bits == 32:
        return floats
    exact = floats.astype(np.float64)
    return np.concatenate([np.nextafter(exact, 0), exact, np.nextafter(exact, np.inf), [1e300, -1e-300]])


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_value_becomes_what_compiled_code_makes_of_it(source: DType, target: DType) -> None:
    with np.errstate(all="ignore"):
        x = telling(source)
    assert same(converted_quietly(x, target), compiled_cast(x, target))


@pytest.mark.parametrize(
    ("source", "target"), [(a, b) for a, b in permutations([F16, BF16, F32], 2) if a != F32], ids=str
)
def test_nan_keeps_what_of_its_bits_compiled_code_keeps(source: DType, target: DType) -> None:
    x = telling(source)
    assert bits(converted_quietly(x, target)) == bits(compiled_cast(x, target))


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_looking_up_gives_what_computing_gives(dtype: DType, tmp_path: Path) -> None:
    """A tensor longer than the table of all values, beside one that is shorter."""
    short = normal((200,)).astype(np_dtype(dtype))
    steps = [{"scale_": {"target": ".*", "by": 0.3}}, {"clamp_": {"target": ".*", "max": 0.1}}]
    long = np.tile(short, 400)
    made = run_plan(tmp_path, {"short": short, "long": long}, steps)
    assert same(made["long"], np.tile(made["short"], 400))


@pytest.mark.parametrize("by", [0.3, -0.0, float("inf"), 1e-30])
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_scaling_every_value_gives_what_compiled_code_gives(dtype: DType, by: float, tmp_path: Path) -> None:
    x = patterns(np_dtype(dtype))
    with jax.enable_x64(True):
        wanted, _ = compiled(elementwise.scale, ())([x], {"by": np.float64(by)})
    assert same(run_plan(tmp_path, {"w": x}, {"scale_": {"target": "w", "by": by}})["w"], np.asarray(wanted))


def test_zero_and_minus_zero_have_tables_of_their_own(tmp_path: Path) -> None:
    x = np.ones(1 << 16, np.float16)
    plus, minus = (run_plan(tmp_path, {"w": x}, {"scale_": {"target": "w", "by": by}})["w"] for by in (0.0, -0.0))
    assert not np.signbit(plus).any()
    assert np.signbit(minus).all()


def test_a_table_is_read_to_its_ends_and_over_pieces() -> None:
    table = np.arange(1 << 16, dtype=np.uint16)[::-1].copy()
    at = np.arange(PIECE + 7, dtype=np.uint32).astype(np.uint16)
    out = np.empty(at.size, np.uint16)
    look_up(table, at, out)
    assert (out == 0xFFFF - at).all()
