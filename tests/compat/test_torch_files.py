"""Spec 1.2, 1.4, 6.7, 6.8 and interfaces 4: files of torch, in and out. `row.py` tells how a row reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused

W, V = counting((4, 6)), -counting((4, 6))
ONE, BOTH = {"w": W}, {"w": W, "v": V}
NONE: dict[str, np.ndarray] = {}
HEAD = "inputs: [model.safetensors]\ntransforms: [copy: { from: w, to: v }]\n"

ROWS = (
    accepted("1.2", "a torch file with tensors by name", "inputs: [m.pt]\noutput: out.safetensors", NONE, BOTH,
             files={"m.pt": BOTH}),
    accepted("1.2", "under `state_dict` in a torch file, whatever lies beside it",
             "inputs: [m.bin]\noutput: out.safetensors", NONE, BOTH, files={"m.bin": {"state_dict": BOTH, "epoch": 3}}),
    accepted("1.2", "torch files of a folder that are parts by their names are one checkpoint",
             "inputs: [dir]\noutput: out.safetensors", NONE, BOTH,
             files={"dir/part-1.pth": ONE, "dir/part-2.pth": {"v": V}}),
    refused("1.2", "others of a folder could be models of their own", "inputs: [dir]", NONE, "io-input",
            "several checkpoints", files={"dir/a.pth": ONE, "dir/b.pt": {"v": V}}),
    refused("1.2", "one name in two torch files of a folder", "inputs: [dir]", NONE, "io-input", "'w'",
            files={"dir/part-1.pt": ONE, "dir/part-2.pt": BOTH}),
    accepted("1.4", "a suffix of torch makes a torch file", HEAD + "output: out.pth", ONE,
             leaves={"out.pth": {"w": W, "v": W}}),
    accepted("1.4", "so does the format", HEAD + "output: { path: out.bin, format: torch }", ONE,
             leaves={"out.bin": {"w": W, "v": W}}),
    accepted("load", "a bare tensor of torch", "load: { path: e.pt, to: e }", ONE, {"e": V}, files={"e.pt": V}),
    accepted("load", "the only tensor of a torch file, under `state_dict` too, beside other values",
             "load: { path: e.pt, to: e, format: torch }", ONE, {"e": V},
             files={"e.pt": {"state_dict": {"x": V, "n": 3}}}),
    accepted("load", "of any suffix, if the format is said", "load: { path: e.tensor, to: e, format: torch }", ONE,
             {"e": V}, files={"e.pt": V, "e.tensor": Path("e.pt")}),
    refused("load", "two tensors are one too many", "load: { path: e.pt, to: e }", ONE, "load-one", "2 tensors",
            files={"e.pt": BOTH}),
    accepted("save", "a torch file of an alias", "save: { path: snap.pt, format: torch }", BOTH, {},
             leaves={"snap.pt": BOTH}),
    accepted("save", "one tensor, bare", "save: { path: e.pt, target: w, format: torch }", BOTH, {},
             leaves={"e.pt": W}),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_torch_files(row: Row, here: Path):
    check(row)
