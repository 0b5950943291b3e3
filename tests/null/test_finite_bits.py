"""Whether floats are finite is told by their bits as numpy tells it of their values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from brainsurgery_jax.dtypes import BY_NAME
from brainsurgery_jax.numerics.finite import holds_nonfinite

SMALL = sorted({dtype.name for dtype in BY_NAME.values() if dtype.is_float and dtype.bits <= 16})
LARGE = {"float32": np.uint32, "float64": np.uint64}


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))  # float16 is numpy's own


@pytest.mark.parametrize("name", SMALL)
def test_every_small_float_is_told_as_numpy_tells_it(name: str):
    bits = np.arange(1 << BY_NAME[name].bits, dtype=f"u{dtype_of(name).itemsize}")
    floats = bits.view(dtype_of(name))
    finite = np.isfinite(floats.astype(np.float32))
    assert [not holds_nonfinite(one) for one in np.split(floats, floats.size)] == finite.tolist()
    assert not holds_nonfinite(floats[finite])


@pytest.mark.parametrize("name", LARGE)
def test_large_floats_are_told_at_the_ends_of_their_range(name: str):
    known = np.finfo(name)
    ends = np.asarray([0.0, -0.0, known.tiny, -known.smallest_subnormal, known.max, known.min], name)
    assert not holds_nonfinite(ends)
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        assert holds_nonfinite(np.append(ends, np.asarray(bad, name)))
    unquiet = np.asarray([LARGE[name](int(np.asarray(np.inf, name).view(LARGE[name])) + 1)]).view(name)
    assert np.isnan(unquiet).all()
    assert holds_nonfinite(unquiet)


def test_complex_numbers_have_two_parts_and_nothing_has_no_element():
    assert not holds_nonfinite(np.asarray([1 + 2j], np.complex64))
    assert holds_nonfinite(np.asarray([1 + np.inf * 1j], np.complex64))
    assert holds_nonfinite(np.asarray([[np.nan + 1j]], np.complex128))
    assert not holds_nonfinite(np.zeros((0, 3), np.float32))


def test_views_with_gaps_and_scalars_are_told_too():
    x = np.zeros((4, 6), np.float16)
    x[1, 1] = np.inf
    assert not holds_nonfinite(x[:, ::2])
    assert holds_nonfinite(x[:, 1::2])
    assert holds_nonfinite(x.T)
    assert holds_nonfinite(np.asarray(np.nan))
