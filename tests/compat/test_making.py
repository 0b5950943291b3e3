"""Spec 3.16 and 3.17: `fill`, `fill_`, `zeroes`, `ones`, `rand`. `row.py` tells how a row reads.

Random values are not those of the reference (see test_departures.py): what counts here is their shape, dtype, bounds
and moments, and that the same seed repeats them.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused, run

F32 = np.float32
W = {"w": counting((4, 6)), "b": counting((6,)), "i": np.arange(4, dtype=np.uint8), "p": np.ones(3, bool),
     "h": counting((2,), np.float16)}  # fmt: skip
ROW = np.array([1, 2, 3, 4, 5, 6], F32)
NONE: dict[str, np.ndarray] = {}

CONSTANT = (
    accepted("fill", "a constant in the shape and dtype of the source",
             "fill: { from: '(w|h)', to: '\\1.n', mode: constant, value: 2.5 }", W,
             {"w.n": np.full((4, 6), 2.5, F32), "h.n": np.full(2, 2.5, np.float16)}),
    accepted("fill", "of a slice", "fill: { from: 'w::[0, :2]', to: n, mode: constant, value: '3' }", W,
             {"n": np.full(2, 3, F32)}),
    accepted("fill", "mode in any case; keys of other modes are allowed",
             "fill: { from: b, to: n, mode: ' Constant ', value: 1, std: 3 }", W, {"n": np.ones(6, F32)}),
    refused("fill", "the mode must be known", "fill: { from: w, to: n, mode: zeros }", W, "value-type",
            "'constant', 'rand' or 'tensor'"),
    refused("fill", "`mode` is required", "fill: { from: w, to: n, value: 0 }", W, "key-missing", "missing key 'mode'"),
    refused("fill", "a constant needs its value", "fill: { from: w, to: n, mode: constant }", W, "key-missing",
            "value"),
    refused("fill", "the value is a number", "fill: { from: w, to: n, mode: constant, value: none }", W, "value-type",
            "expected a number"),
    refused("fill", "the destination must be new", "fill: { from: w, to: b, mode: constant, value: 0 }", W,
            "dest-exists", "'b' exists"),
    accepted("fill_", "in place, on a slice", "fill_: { target: 'w::[1:3, 0]', mode: constant, value: -1 }", W,
             {"w": np.where((np.arange(24).reshape(4, 6) % 6 == 0) & (np.arange(4)[:, None] % 3 > 0), F32(-1),
                            W["w"])}),
    refused("fill_", "the reference cuts 2.9 to 2", "fill_: { target: i, mode: constant, value: 2.9 }", W, "inexact",
            "2.9 is not an integer"),
    accepted("fill_", "booleans are true where the value is not zero", "fill_: { target: p, mode: constant, value: 0 }",
             W, {"p": np.zeros(3, bool)}),
    refused("fill_", "300 is no uint8", "fill_: { target: i, mode: constant, value: 300 }", W, "fill-range",
            "does not fit uint8"),
    refused("fill_", "-1 is no uint8", "fill_: { target: i, mode: constant, value: -1 }", W, "fill-range", "uint8"),
    refused("fill_", "NaN is no integer", "fill_: { target: i, mode: constant, value: nan }", W, "fill-range", "uint8"),
    refused("fill_", "1e6 is no float16", "fill_: { target: h, mode: constant, value: 1e6 }", W, "fill-range",
            "too large for float16"),
    refused("fill_", "something must match", "fill_: { target: none, mode: constant, value: 0 }", W, "no-match",
            "none"),
)  # fmt: skip

GIVEN = (
    accepted("fill", "values of the same shape", "fill: { from: b, to: n, mode: tensor, values: [1, 2, 3, 4, 5, 6] }",
             W,
             {"n": ROW}),
    accepted("fill_", "values are repeated along leading axes",
             "fill_: { target: w, mode: tensor, values: [[1, 2, 3, 4, 5, 6]] }", W, {"w": np.stack([ROW] * 4)}),
    accepted("fill_", "one number fills all", "fill_: { target: w, mode: tensor, values: 2 }", W,
             {"w": np.full((4, 6), 2, F32)}),
    accepted("fill_", "values take the dtype", "fill_: { target: h, mode: tensor, values: [0.1, 2] }", W,
             {"h": np.array([0.1, 2], np.float16)}),
    refused("fill", "values are required", "fill: { from: b, to: n, mode: tensor }", W, "key-missing", "values"),
    refused("fill_", "values must fit the shape", "fill_: { target: w, mode: tensor, values: [1, 2, 3, 4] }", W,
            "fill-shape", r"\[4\] cannot be repeated"),
    refused("fill_", "values have no more axes than the tensor", "fill_: { target: b, mode: tensor, values: [[1]] }", W,
            "fill-shape", r"\[1, 1\] cannot be repeated"),
    refused("fill_", "rows have one length", "fill_: { target: w, mode: tensor, values: [[1, 2], [3]] }", W,
            "fill-values", "ragged"),
    refused("fill_", "values are numbers", "fill_: { target: b, mode: tensor, values: [one] }", W, "fill-values",
            "expected numbers"),
)  # fmt: skip

RANDOM = (
    refused("fill_", "random values need a floating dtype", "fill_: { target: i, mode: rand }", W, "dtype-unsupported",
            "need a floating dtype"),
    refused("fill_", "low is below high", "fill_: { target: w, mode: rand, low: 1, high: 1 }", W, "rand-range",
            "low 1 is not below high 1"),
    refused("fill_", "std is positive", "fill_: { target: w, mode: rand, distribution: normal, std: 0 }", W,
            "rand-range", "std must be positive"),
    refused("fill_", "the seed is an integer", "fill_: { target: w, mode: rand, seed: '7' }", W, "value-type",
            "expected an integer, got the text '7'"),
    refused("rand", "the distribution must be known", "rand: { target: n, shape: [2], distribution: cauchy }", W,
            "value-type", "'uniform' or 'normal'"),
    refused("rand", "low is below high", "rand: { target: n, shape: [2], low: 2 }", W, "rand-range", "low 2"),
    refused("rand", "the name must be new", "rand: { target: w, shape: [2] }", W, "dest-exists", "'w' exists"),
    refused("rand", "`shape` is required", "rand: { target: n }", W, "key-missing", "missing key 'shape'"),
)  # fmt: skip

MADE = (
    accepted("zeroes", "float32 under a new name", "zeroes: { target: n, shape: [2, 3] }", W,
             {"n": np.zeros((2, 3), F32)}),
    accepted("zeroes", "in an alias made for it",
             "[prefixes: { mode: add, alias: work }, zeroes: { target: 'work::n', shape: [1] }]", NONE,
             {"n": np.zeros(1, F32)}),
    accepted("ones", "the name is taken literally", "ones: { target: 'n.*', shape: [2] }", W, {"n.*": np.ones(2, F32)}),
    *(row for op in ("zeroes", "ones") for row in (
        refused(op, "the name must be new", f"{op}: {{ target: w, shape: [2] }}", W, "dest-exists", "'w' exists"),
        refused(op, "sizes are positive", f"{op}: {{ target: n, shape: [2, 0] }}", W, "value-type", "greater than 0"),
        refused(op, "the shape is not empty", f"{op}: {{ target: n, shape: [] }}", W, "value-type", "at least 1"),
        refused(op, "the target is no list", f"{op}: {{ target: [n], shape: [2] }}", W, "ref-literal", "literal name"),
        refused(op, "the target takes no slice", f"{op}: {{ target: 'n::[0]', shape: [2] }}", W, "slice-not-allowed",
                "a slice is not allowed here"),
        refused(op, "the alias must be there", f"{op}: {{ target: 'work::n', shape: [2] }}", W, "alias-unknown",
                "work"),
    )),
)  # fmt: skip

ROWS = (*CONSTANT, *GIVEN, *RANDOM, *MADE)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_making(row: Row, here: Path):
    check(row)


def drawn(step: str, name: str = "n") -> np.ndarray:
    """The tensor that a step makes of W."""
    out, _ = run(step, W)
    Path("out.safetensors").unlink()
    return out[name]


def test_rand_is_float32_and_uniform_from_low_to_high(here: Path):
    x = drawn("rand: { target: n, shape: [40, 50], low: -1, high: 3, seed: 7 }")
    assert (x.shape, x.dtype) == ((40, 50), F32)
    assert -1 <= x.min() < -0.9
    assert 2.9 < x.max() < 3
    assert abs(x.mean() - 1) < 0.1


def test_rand_is_uniform_from_zero_to_one_by_default(here: Path):
    x = drawn("rand: { target: n, shape: [2000] }")
    assert 0 <= x.min() < 0.01 < 0.99 < x.max() < 1


def test_rand_normal_has_the_given_mean_and_deviation(here: Path):
    x = drawn("rand: { target: n, shape: [2000], distribution: Normal, mean: 5, std: 0.02, seed: 7 }")
    assert abs(x.mean() - 5) < 0.002
    assert abs(x.std() - 0.02) < 0.002


def test_the_same_seed_gives_the_same_values_and_another_seed_others(here: Path):
    one, again, other = (drawn(f"rand: {{ target: n, shape: [9], seed: {seed} }}") for seed in (7, 7, 8))
    assert (one == again).all()
    assert not (one == other).any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_fill_draws_in_the_dtype_of_the_source(here: Path, dtype: type):
    out, _ = run("fill: { from: x, to: n, mode: rand, low: 2, high: 3 }", {"x": np.zeros((30, 30), dtype)})
    x = out["n"].astype(np.float64)
    assert out["n"].dtype == dtype
    assert 2 <= x.min() <= x.max() <= 3
    assert abs(x.mean() - 2.5) < 0.05


def test_fill_in_place_draws_into_the_slice_alone(here: Path):
    x = drawn("fill_: { target: 'w::[:2]', mode: rand, distribution: normal, mean: 100, seed: 1 }", "w")
    assert (x[:2] > 90).all()
    assert (x[2:] == W["w"][2:]).all()
