"""Spec 3.12 to 3.15: `reshape`, `permute`, `concat`, `split`. `row.py` tells how a row reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused

W, V = counting((4, 6)), -counting((2, 6))
X = {"w": W, "t": counting((2, 3, 4)), "b": counting((6,)), "s": np.array(1, np.float32)}
QKV = {"q.w": W, "k.w": V, "v.w": W * 2, "wide": counting((4, 2)), "half": W.astype(np.float16), "b": counting((6,)),
       "s": np.array(1, np.float32)}  # fmt: skip

RESHAPE = (
    accepted("reshape", "row-major, under a new name", "reshape: { from: w, to: n, shape: [3, 8] }", X,
             {"n": W.reshape(3, 8)}),
    accepted("reshape", "one size may be left open", "reshape: { from: t, to: n, shape: [4, -1] }", X,
             {"n": X["t"].reshape(4, 6)}),
    accepted("reshape", "of a slice, whose elements are taken in order",
             "reshape: { from: 'w::[:, :2]', to: n, shape: [8] }",
             X, {"n": W[:, :2].reshape(8)}),
    accepted("reshape", "a scalar becomes a vector", "reshape: { from: s, to: n, shape: [1] }", X,
             {"n": X["s"].reshape(1)}),
    refused("reshape", "the number of elements stays", "reshape: { from: w, to: n, shape: [5, 5] }", X, "reshape-size",
            r"24 elements, which do not fit the shape \[5, 5\]"),
    refused("reshape", "what is left open must come out even", "reshape: { from: w, to: n, shape: [5, -1] }", X,
            "reshape-size", "24"),
    refused("reshape", "only one size may be left open", "reshape: { from: w, to: n, shape: [-1, -1] }", X,
            "reshape-shape", "at most one -1"),
    refused("reshape", "no size is 0", "reshape: { from: w, to: n, shape: [0, 24] }", X, "reshape-shape", "positive"),
    refused("reshape", "the shape is not empty", "reshape: { from: s, to: n, shape: [] }", X, "value-type",
            "at least 1"),
    refused("reshape", "sizes are integers, not text", "reshape: { from: w, to: n, shape: ['24'] }", X, "value-type",
            "expected an integer, got the text '24'"),
    refused("reshape", "the destination must be new", "reshape: { from: w, to: b, shape: [24] }", X, "dest-exists",
            "'b' exists already"),
    accepted("reshape_", "under its own name", "reshape_: { target: 'w|t', shape: [-1, 2] }", X,
             {"w": W.reshape(12, 2), "t": X["t"].reshape(12, 2)}),
    refused("reshape_", "the target takes no slice", "reshape_: { target: 'w::[0]', shape: [6] }", X,
            "slice-not-allowed", "a slice is not allowed here"),
    refused("reshape_", "one match that does not fit refuses the step", "reshape_: { target: '.', shape: [24] }", X,
            "reshape-size", "'model::b'"),
)  # fmt: skip

PERMUTE = (
    accepted("permute", "axis i of the result is axis order[i] of the source",
             "permute: { from: t, to: n, order: [2, 0, 1] }", X, {"n": X["t"].transpose(2, 0, 1)}),
    accepted("permute", "of a slice", "permute: { from: 't::[0]', to: n, order: [1, 0] }", X, {"n": X["t"][0].T}),
    refused("permute", "the order names every axis once", "permute: { from: t, to: n, order: [0, 0, 1] }", X,
            "permute-order", r"\[0, 0, 1\] is not a permutation"),
    refused("permute", "the order is as long as the rank", "permute: { from: t, to: n, order: [1, 0] }", X,
            "permute-order", "not a permutation"),
    refused("permute", "axes do not count from the end", "permute: { from: w, to: n, order: [-1, 0] }", X,
            "permute-order", "not a permutation"),
    refused("permute", "the order is not empty", "permute: { from: s, to: n, order: [] }", X, "value-type",
            "at least 1"),
    refused("permute", "the destination must be new", "permute: { from: w, to: b, order: [1, 0] }", X, "dest-exists",
            "'b'"),
)  # fmt: skip

CONCAT = (
    accepted("concat", "along the first axis unless told otherwise", r"concat: { from: ['q\.w', 'k\.w'], to: qk }", QKV,
             {"qk": np.concatenate([W, V])}),
    accepted("concat", "an axis may count from the end, sources may be sliced",
             "concat: { from: ['q.w', 'wide', 'v.w::[:, 3:]'], to: n, dim: -1 }", QKV,
             {"n": np.concatenate([W, QKV["wide"], W[:, 3:] * 2], 1)}),
    accepted("concat", "one source may be used twice", "concat: { from: [b, b], to: bb }", QKV,
             {"bb": np.concatenate([QKV["b"]] * 2)}),
    accepted("concat", "sources may be lists of tokens", "concat: { from: [[q, $x], [k, w]], to: n }", QKV,
             {"n": np.concatenate([W, V])}),
    accepted("concat", "the destination is taken literally", "concat: { from: [b, b], to: 'n(.*)' }", QKV,
             {"n(.*)": np.concatenate([QKV["b"]] * 2)}),
    refused("concat", "a destination with a capture, which the reference took literally, is a template",
            "concat: { from: [b, b], to: 'n\\1' }", QKV, "template-group", "asks for group 1"),
    refused("concat", "each source matches exactly one tensor", r"concat: { from: ['.\.w', b], to: n }", QKV,
            "many-matches", "must match exactly one"),
    refused("concat", "each source must match", "concat: { from: [b, none], to: n }", QKV, "no-match", "'none'"),
    refused("concat", "at least two sources", "concat: { from: [b], to: n }", QKV, "value-type", "at least 2"),
    refused("concat", "the destination must be new", "concat: { from: [b, b], to: wide }", QKV, "dest-exists",
            "'wide'"),
    refused("concat", "the destination takes no slice", "concat: { from: [b, b], to: 'n::[0]' }", QKV,
            "slice-not-allowed", "a slice is not allowed here"),
    refused("concat", "the axis must be there", "concat: { from: [b, b], to: n, dim: 1 }", QKV, "axis-range",
            "dim 1 is out of range"),
    refused("concat", "a scalar has no axis", "concat: { from: [s, s], to: n }", QKV, "axis-range", "scalar"),
    refused("concat", "the axis is an integer", "concat: { from: [b, b], to: n, dim: '0' }", QKV, "value-type",
            "expected an integer, got the text '0'"),
    refused("concat", "ranks agree", r"concat: { from: ['q\.w', b], to: n }", QKV, "shapes-differ",
            r"f32\[4,6\].*f32\[6\]"),
    refused("concat", "sizes agree on the other axes", r"concat: { from: ['q\.w', 'k\.w'], to: n, dim: 1 }", QKV,
            "shapes-differ", r"f32\[4,6\].*f32\[2,6\]"),
    refused("concat", "dtypes agree", r"concat: { from: ['q\.w', half], to: n }", QKV, "dtypes-differ", "f16"),
)  # fmt: skip

SPLIT = (
    accepted("split", "parts of the given sizes; the source stays",
             "split: { from: w, to: [a, c, d], sizes: [1, 2, 1] }", X, {"a": W[:1], "c": W[1:3], "d": W[3:]}),
    accepted("split", "along another axis of a slice", "split: { from: 'w::[:2]', to: [a, c], sizes: [5, 1], dim: -1 }",
             X, {"a": W[:2, :5], "c": W[:2, 5:]}),
    accepted("split", "a list in `from` is a structured pattern", "split: { from: [q, $x], to: [a, c], sizes: [2, 2] }",
             QKV, {"a": W[:2], "c": W[2:]}),
    accepted("split", "the names are taken literally", "split: { from: b, to: ['a.*', '\\1'], sizes: [3, 3] }", X,
             {"a.*": X["b"][:3], "\\1": X["b"][3:]}),
    refused("split", "the source matches exactly one tensor", r"split: { from: '[wb]', to: [a, c], sizes: [2, 2] }", X,
            "many-matches", "must match exactly one"),
    refused("split", "sizes cover the whole axis", "split: { from: w, to: [a, c], sizes: [2, 1] }", X, "split-sizes",
            "add up to 3, but axis 0 of .* has 4"),
    refused("split", "a size for each name", "split: { from: w, to: [a, c], sizes: [1, 2, 1] }", X, "split-sizes",
            "2 names in `to`, but 3 sizes"),
    refused("split", "at least two names", "split: { from: w, to: [a], sizes: [2, 2] }", X, "value-type", "at least 2"),
    refused("split", "sizes are positive", "split: { from: w, to: [a, c], sizes: [0, 4] }", X, "value-type",
            "greater than 0"),
    refused("split", "names take no slice", "split: { from: w, to: [a, 'c::[0]'], sizes: [2, 2] }", X,
            "slice-not-allowed", "a slice is not allowed here"),
    refused("split", "the names must be new", "split: { from: w, to: [a, b], sizes: [2, 2] }", X, "dest-exists", "'b'"),
    refused("split", "the axis must be there", "split: { from: b, to: [a, c], sizes: [3, 3], dim: 1 }", X,
            "axis-range", "dim 1 is out of range"),
)  # fmt: skip

ROWS = (*RESHAPE, *PERMUTE, *CONCAT, *SPLIT)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_shapes(row: Row, here: Path):
    check(row)
