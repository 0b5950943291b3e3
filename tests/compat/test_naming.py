"""Spec 3.2 to 3.5: `copy`, `move`, `delete`, `assign`. `row.py` tells how a row reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused

W, V, B = counting((4, 6)) - 7, counting((4, 6)) * 2, np.array([1, -2, 3], np.float32)
H = W.astype(np.float16)
ONE = {"w": W, "b": B}
LAYERS = {"h.0.w": W, "h.1.w": V, "h.10.w": W - V, "ln.w": B}
TWO = {"base": {"w": W, "b": B}, "tuned": {"v": V}}
PAIR = {"w": W, "v": V, "half": H, "b": B}

COPY = (
    accepted("copy", "the copy has shape, dtype and values of its source", "copy: { from: w, to: n }", ONE, {"n": W}),
    accepted("copy", "a slice of the source becomes a tensor of its own", "copy: { from: 'w::[:2, 1]', to: n }", ONE,
             {"n": W[:2, 1]}),
    accepted("copy", "a pattern copies every match", r"copy: { from: 'h\.(\d+)\.(.*)', to: 'g.\1.\2' }", LAYERS,
             {"g.0.w": W, "g.1.w": V, "g.10.w": W - V}),
    accepted("copy", "the aliases of source and destination may differ", "copy: { from: 'base::w', to: 'tuned::w' }",
             TWO, {"tuned::w": W}),
    accepted("copy", "a later edit of the source leaves the copy as it was",
             "[copy: { from: w, to: n }, scale_: { target: w, by: 2 }]", ONE, {"n": W, "w": W * 2}),
    refused("copy", "the destination must not exist", "copy: { from: w, to: b }", ONE, "dest-exists",
            "'b' exists already"),
    refused("copy", "a name cannot be copied onto itself", "copy: { from: w, to: w }", ONE, "dest-exists",
            "'w' exists"),
    refused("copy", "something must match", "copy: { from: 'x.*', to: n }", ONE, "no-match",
            r"no tensor matches 'x\.\*'"),
    refused("copy", "two sources cannot take one name", r"copy: { from: 'h\.\d+\.w', to: n }", LAYERS, "names-collide",
            "'n'"),
    refused("copy", "the destination takes no slice", "copy: { from: w, to: 'n::[:2]' }", ONE, "slice-not-allowed",
            "a slice is not allowed here"),
    refused("copy", "`to` is required", "copy: { from: w }", ONE, "key-missing", "missing key 'to'"),
    refused("copy", "there are no other keys", "copy: { from: w, to: n, dtype: float16 }", ONE, "key-unknown",
            "unknown key 'dtype'"),
    refused("copy", "the payload is a mapping", "copy: w", ONE, "payload-type", "expected a mapping"),
)  # fmt: skip

MOVE = (
    accepted("move", "the tensor has the new name and no longer the old", "move: { from: w, to: n }", ONE,
             {"w": None, "n": W}),
    accepted("move", "captures make the new names", r"move: { from: 'h\.(.+)', to: 'model.\1' }", LAYERS,
             {"h.0.w": None, "h.1.w": None, "h.10.w": None, "model.0.w": W, "model.1.w": V, "model.10.w": W - V}),
    accepted("move", "a tensor may move to another alias", "move: { from: 'base::w', to: 'tuned::w' }", TWO,
             {"base::w": None, "tuned::w": W}),
    refused("move", "the destination must not exist", "move: { from: w, to: b }", ONE, "dest-exists",
            "'b' exists already"),
    refused("move", "neither side takes a slice", "move: { from: 'w::[:2]', to: n }", ONE, "slice-not-allowed",
            "a slice is not allowed here"),
    refused("move", "the destination takes no slice either", "move: { from: w, to: 'n::[0]' }", ONE,
            "slice-not-allowed", "a slice is not allowed here"),
    refused("move", "something must match", "move: { from: none, to: n }", ONE, "no-match", "no tensor matches 'none'"),
)  # fmt: skip

DELETE = (
    accepted("delete", "every match is gone", r"delete: { target: 'h\..*' }", LAYERS,
             {"h.0.w": None, "h.1.w": None, "h.10.w": None}),
    refused("delete", "something must match", "delete: { target: 'tmp.*' }", ONE, "no-match", r"no tensor matches"),
    refused("delete", "the target takes no slice", "delete: { target: 'w::[0]' }", ONE, "slice-not-allowed",
            "a slice is not allowed here"),
    refused("delete", "`target` is required", "delete: {}", ONE, "key-missing", "missing key 'target'"),
)  # fmt: skip

ASSIGN = (
    accepted("assign", "values replace those of a tensor that exists", "assign: { from: w, to: v }", PAIR, {"v": W}),
    accepted("assign", "slices on both sides", "assign: { from: 'w::[:, :2]', to: 'v::[:, 4:]' }", PAIR,
             {"v": np.concatenate([V[:, :4], W[:, :2]], 1)}),
    accepted("assign", "an integer in a slice drops its axis", "assign: { from: 'w::[0]', to: 'v::[3]' }", PAIR,
             {"v": np.stack([*V[:3], W[0]])}),
    accepted("assign", "the same part of one tensor may stand on both sides",
             "assign: { from: 'w::[:2]', to: 'w::[:2]' }", PAIR, {}),
    refused("assign", "the destination must exist", "assign: { from: w, to: none }", PAIR, "tensor-missing",
            "'none' does not exist"),
    refused("assign", "shapes must be equal: nothing is repeated", "assign: { from: b, to: w }", PAIR, "dest-differs",
            r"f32\[4,6\].*f32\[3\]"),
    refused("assign", "shapes must be equal after slicing", "assign: { from: 'w::[:2]', to: 'v::[:3]' }", PAIR,
            "dest-differs", r"f32\[3,6\].*f32\[2,6\]"),
    refused("assign", "dtypes must be equal: nothing is cast", "assign: { from: half, to: w }", PAIR, "dest-differs",
            r"f32\[4,6\].*f16\[4,6\]"),
)  # fmt: skip

ROWS = (*COPY, *MOVE, *DELETE, *ASSIGN)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_naming(row: Row, here: Path):
    check(row)
