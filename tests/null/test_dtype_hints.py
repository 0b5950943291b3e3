"""Casts that are proposed change no value."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from brainsurgery_jax.dtypes import BY_NAME, DTYPES, DType, common_dtype_hint, float_hint, holds_all, to_numpy

NUMBERS = [d for d in DTYPES if d.numpy is not None and d.kind != "complex"]


def extremes(dtype: DType) -> np.ndarray:
    """The values of a dtype that are hardest to hold."""
    if dtype.kind in ("int", "uint"):
        info = np.iinfo(to_numpy(dtype))
        return np.array([info.min, info.max, info.max - 1], to_numpy(dtype))
    if dtype.kind == "bool":
        return np.array([False, True])
    info = ml_dtypes.finfo(to_numpy(dtype))
    return np.array([info.max, info.smallest_normal, 1 + float(info.eps)]).astype(to_numpy(dtype))


@pytest.mark.parametrize("wide", NUMBERS, ids=str)
@pytest.mark.parametrize("narrow", NUMBERS, ids=str)
def test_what_holds_all_values_gives_them_back(wide: DType, narrow: DType) -> None:
    if holds_all(wide, narrow):
        values = extremes(narrow)
        exact = [int(v) if narrow.kind in ("int", "uint", "bool") else float(v) for v in values]
        held = (
            values.astype(np.float64).astype(to_numpy(wide)) if wide.kind == "float" else values.astype(to_numpy(wide))
        )
        assert [type(e)(h) for e, h in zip(exact, held.tolist(), strict=True)] == exact


@pytest.mark.parametrize(
    ("a", "b", "to"),
    [("f16", "f32", "float32"), ("f32", "f16", "float32"), ("f16", "bf16", "float32"), ("i64", "u8", "int64"),
     ("i8", "u8", "int16"), ("i32", "f32", "float64"), ("bool", "f16", "float16")],
)  # fmt: skip
def test_two_dtypes_meet_in_the_smallest_that_holds_both(a: str, b: str, to: str) -> None:
    assert f"to: {to}}}" in common_dtype_hint(BY_NAME[a], BY_NAME[b])


def test_where_no_dtype_holds_both_no_cast_is_proposed() -> None:
    assert "`cast_" not in common_dtype_hint(BY_NAME["i64"], BY_NAME["f32"])


@pytest.mark.parametrize(
    ("dtype", "to"), [("i8", "float32"), ("bool", "float32"), ("i32", "float64"), ("i64", "float64")]
)
def test_integers_become_floats_that_hold_them_where_there_are_such(dtype: str, to: str) -> None:
    assert re.search("to: (.*)}`", float_hint(BY_NAME[dtype])[:-1])[1] == to  # type: ignore[index]
