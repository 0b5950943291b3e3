"""Spec 1.2, 6.7 and 6.8: checkpoints that a plan reads and writes, `load`, `save`. `row.py` tells how a row reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused

W, V, B = counting((4, 6)), -counting((4, 6)), counting((3,))
ONE = {"w": W}
TWO = {"base": {"w": W}, "tuned": {"v": V}}
TUNED: dict[str, Any] = {"tuned.safetensors": {"v": V, "b": B}}
NONE: dict[str, np.ndarray] = {}
PLAN = "inputs: {inputs}\ntransforms: {steps}\noutput: {{ path: out.safetensors, alias: {alias} }}"
INDEX = json.dumps({"metadata": {}, "weight_map": {"w": "part-1.safetensors", "v": "part-2.safetensors"}})
PARTS: dict[str, Any] = {"dir/part-1.safetensors": {"w": W}, "dir/part-2.safetensors": {"v": V}}


def plan(steps: str, inputs: str = "[model.safetensors]", alias: str = "model") -> str:
    """A plan that writes one of its aliases."""
    return PLAN.format(inputs=inputs, steps=steps, alias=alias)


def bad_index(shard: str) -> dict[str, Any]:
    """A folder whose index names this shard."""
    index = json.dumps({"weight_map": {"w": shard}})
    return {"dir/part-1.safetensors": {"w": W}, "dir/model.safetensors.index.json": index}


INPUTS = (
    accepted("1.2", "a folder of safetensors files is one checkpoint", plan("[]", "[dir]"), NONE, {"w": W, "v": V},
             files=PARTS),
    accepted("1.2", "only the top level of a folder counts", plan("[]", "[dir]"), NONE, {"w": W, "v": V},
             files=PARTS | {"dir/old/part-3.safetensors": {"x": B}}),
    accepted("1.2", "with an index only the shards in it are read", plan("[]", "[dir]"), NONE, {"w": W, "v": V},
             files=PARTS | {"dir/model.safetensors.index.json": INDEX, "dir/stale.safetensors": {"w": B}}),
    accepted("1.2", "a suffix in capitals is that suffix", plan("[]", "[M.SafeTensors]"), NONE, ONE,
             files={"M.SafeTensors": ONE}),
    accepted("1.2", "a path may hold `::`", plan("[]", "['model::a::b.safetensors']"), NONE, ONE,
             files={"a::b.safetensors": ONE}),
    refused("1.2", "a path must be there", plan("[]", "[none.safetensors]"), NONE, "io-input", "does not exist"),
    refused("1.2", "a name in two files of a folder", plan("[]", "[dir]"), NONE, "io-input", "is also in",
            files=PARTS | {"dir/part-3.safetensors": {"w": B}}),
    refused("1.2", "an empty folder", plan("[]", "[dir]"), NONE, "io-input", "holds no checkpoint",
            files={"dir/readme.txt": "nothing"}),
    refused("1.2", "a shard of the index is missing", plan("[]", "[dir]"), NONE, "io-input",
            "part-2.safetensors', which is not there",
            files={"dir/part-1.safetensors": {"w": W}, "dir/model.safetensors.index.json": INDEX}),
    refused("1.2", "an index leads out of its folder", plan("[]", "[dir]"), NONE, "io-input", "outside of its folder",
            files=bad_index("../part-1.safetensors")),
    refused("1.2", "an index names an absolute path", plan("[]", "[dir]"), NONE, "io-input", "outside of its folder",
            files=bad_index("/part-1.safetensors")),
)  # fmt: skip

LOAD = (
    accepted("load", "a path alone, under the alias `model`", plan("{ load: tuned.safetensors }", "[]"), NONE,
             {"v": V, "b": B}, files=TUNED),
    accepted("load", "under an alias of its own",
             plan("[load: { path: tuned.safetensors, alias: tuned }, copy: { from: 'tuned::v', to: v }]"), ONE,
             {"v": V},
             files=TUNED),
    accepted("load", "a folder is as good as a file", plan("[load: dir]", "[]"), NONE, {"w": W, "v": V}, files=PARTS),
    accepted("load", "one tensor of a file under a literal name", "load: { path: e.npy, to: 'emb.*' }", ONE,
             {"emb.*": B},
             files={"e.npy": B}),
    accepted("load", "the only array of an archive", "load: { path: e.npz, to: 'model::e', format: auto }", ONE,
             {"e": B},
             files={"e.npz": {"any": B}}),
    accepted("load", "the only tensor of a safetensors file",
             "load: { path: e.safetensors, to: e, format: safetensors }", ONE, {"e": B},
             files={"e.safetensors": {"x": B}}),
    accepted("load", "with `to`, into an alias that is made if needed",
             plan("[load: { path: e.npy, to: 'side::e', format: numpy }, copy: { from: 'side::e', to: e }]"), ONE,
             {"e": B},
             files={"e.npy": B}),
    accepted("load", "with `to`, the alias may be said twice", "load: { path: e.npy, alias: model, to: 'model::e' }",
             ONE,
             {"e": B}, files={"e.npy": B}),
    refused("load", "the alias must be new", "load: { path: tuned.safetensors, alias: model }", ONE, "alias-exists",
            "alias 'model' exists already", files=TUNED),
    refused("load", "so must the default alias", "load: tuned.safetensors", ONE, "alias-exists",
            "alias 'model' exists already", files=TUNED),
    refused("load", "the path must be there", plan("[load: { path: none.safetensors, alias: x }]"), ONE, "io-input",
            "does not exist"),
    refused("load", "`path` is required", "load: { alias: x }", ONE, "key-missing", "missing key 'path'"),
    refused("load", "the format must be known", "load: { path: e.npy, to: e, format: npy }", ONE, "value-type",
            "'numpy'",
            files={"e.npy": B}),
    refused("load", "with `to` the file holds one tensor", "load: { path: tuned.safetensors, to: e }", ONE, "load-one",
            "holds 2 tensors", files=TUNED),
    refused("load", "with `to` the name must be new", "load: { path: e.npy, to: w }", ONE, "dest-exists", "'w' exists",
            files={"e.npy": B}),
    refused("load", "the two aliases must agree", "load: { path: e.npy, alias: other, to: 'model::e' }", ONE,
            "load-alias",
            "'other' and `to` in 'model' disagree", files={"e.npy": B}),
    refused("load", "`to` takes no slice", "load: { path: e.npy, to: 'e::[0]' }", ONE, "slice-not-allowed",
            "a slice is not allowed here", files={"e.npy": B}),
    refused("load", "`to` is no list", "load: { path: e.npy, to: [e] }", ONE, "ref-literal", "one literal name",
            files={"e.npy": B}),
)  # fmt: skip

SAVE = (
    accepted("save", "a file with all tensors of an alias as they are now; folders are made",
             "[save: new/snap.safetensors, scale_: { target: w, by: 2 }]", ONE, {"w": W * 2},
             leaves={"new/snap.safetensors": ONE}),
    accepted("save", "of one alias among several", "save: { path: snap.safetensors, alias: tuned }", TWO, {},
             leaves={"snap.safetensors": {"v": V}}),
    accepted("save", "in shards, in a folder", "save: { path: snap, shard: 100B }", {"w": W, "v": V}, {},
             leaves={"snap": {"w": W, "v": V}}),
    accepted("save", "shards may have a number of bytes in any spelling", "save: { path: snap, shard: ' 1 kb ' }", ONE,
             {},
             leaves={"snap": ONE}),
    accepted("save", "one tensor, under its own name", "save: { path: e.safetensors, target: w }", {"w": W, "v": V}, {},
             leaves={"e.safetensors": ONE}),
    accepted("save", "one tensor for numpy", "save: { path: e.npy, target: 'model::w', format: numpy }",
             {"w": W, "v": V},
             {}, leaves={"e.npy": W}),
    refused("save", "several aliases need a word", "save: snap.safetensors", TWO, "save-ambiguous", "'base', 'tuned'"),
    refused("save", "the alias must be there", "save: { path: snap.safetensors, alias: x }", ONE, "alias-unknown",
            "'x'"),
    refused("save", "the tensor must be there", "save: { path: e.npy, target: x }", ONE, "tensor-missing", "'x'"),
    refused("save", "the tensor takes no slice", "save: { path: e.npy, target: 'w::[0]' }", ONE, "slice-not-allowed",
            "a slice is not allowed here"),
    refused("save", "`path` is required", "save: {}", ONE, "key-missing", "missing key 'path'"),
    refused("save", "the format must be known", "save: { path: snap, format: gguf }", ONE, "output-format",
            "unknown format 'gguf'"),
    refused("save", "shards need a folder", "save: { path: snap.safetensors, shard: 1MB }", ONE, "output-path",
            "one file, and a shard size needs a folder"),
    refused("save", "shards need safetensors", "save: { path: snap.pt, format: torch, shard: 1MB }", ONE, "output-path",
            "'snap.pt' is one file, and a shard size needs a folder"),
    refused("save", "one tensor is not sharded", "save: { path: e.npy, target: w, shard: 1MB }", ONE, "output-path",
            "'e.npy' is one file, and a shard size needs a folder"),
    refused("save", "a size has a unit that is known", "save: { path: snap, shard: 1XB }", ONE, "output-shard", "1XB"),
)  # fmt: skip

ROWS = (*INPUTS, *LOAD, *SAVE)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_load_and_save(row: Row, here: Path):
    check(row)
