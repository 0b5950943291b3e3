"""What a writer cannot hold is told by `check`, so that no run fails after its work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.store.io.in_memory import MemorySource
from brainsurgery_jax.store.safetensors import layout as safetensors_layout
from brainsurgery_jax.world import Files

ONE = np.ones((2, 3), np.float32)
HALF = "a\ud800"
"""Half a surrogate pair, as escapes in a JSON header or in YAML may spell it."""


class Row(NamedTuple):
    output: Mapping[str, Any]
    names: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.output['path'][-12:]}: {self.message[:30]}"


LONG = "x" * 210
ROWS = (
    Row({"path": "m.safetensors"}, (HALF,), "is not valid Unicode"),
    Row({"path": "m.npz"}, (HALF,), "is not valid Unicode"),
    Row({"path": "orbax/", "format": "orbax"}, (HALF,), "is not valid Unicode"),
    Row({"path": "m.npz", "metadata": {"long": "x" * 70_000}}, ("w",), "a zip archive holds 65535"),
    Row({"path": "m.npz"}, ("x", "x.npy"), "numpy cannot tell it from 'x', whose member is called 'x.npy'"),
    Row({"path": "m.npz"}, ("a\0b",), "a zip archive cannot hold such a name"),
    Row({"path": "m.pt", "options": {"bare": True}}, ("v", "w"), "cannot hold 2 tensors without a dict"),
    Row({"path": "m.npy"}, ("v", "w"), "npy holds one array, and there are 2 tensors"),
    Row({"path": "orbax/", "format": "orbax"}, ("a", "a.b"), "is the prefix of 'a.b'"),
    Row({"path": "orbax/", "format": "orbax"}, ("a..b",), "a key of the tree would be empty"),
    Row({"path": f"{LONG}.safetensors"}, ("w",), "has 222 bytes, and an output can have 200"),
    Row({"path": f"{LONG}.npz"}, ("w",), "has 214 bytes, and an output can have 200"),
    Row({"path": f"{LONG}/"}, ("w",), "has 210 bytes, and an output can have 200"),
    Row({"path": f"{'ä' * 101}/"}, ("w",), "has 202 bytes, and an output can have 200"),
)


def world(names: tuple[str, ...]) -> Files:
    tensors = {name: ONE + at for at, name in enumerate(names)}
    source = MemorySource("<tensors>", tensors, dict.fromkeys(names, Aval(ONE.shape, FLOAT32)), {})
    return Files(sources={os.path.realpath("<tensors>"): source})


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_a_writer_cannot_hold_is_told_by_check_and_leaves_nothing(row: Row, here: Path) -> None:
    plan = bs.load({"inputs": ["m::<tensors>"], "output": dict(row.output)})
    (found,) = bs.check(plan, world(row.names))
    assert found.severity == "error"
    assert row.message in found.message
    with pytest.raises(PlanError):
        plan.run(durable=False, world=world(row.names))
    assert list(here.iterdir()) == []


def test_a_twin_of_a_world_has_its_sources_in_memory_and_leaves_them_open() -> None:
    ours = world(("w",))
    plan = bs.load({"inputs": ["m::<tensors>"]})
    with closing(ours.twin()) as twin:
        assert bs.check(plan, twin) == ()
    source = ours.open("<tensors>")
    assert source.read("w").tobytes() == ONE.tobytes()


NAMES = ("a/b", "/abs", "..", "../x", "a b", "a%b", "a*", "A", "ä.w", "a'b\"c", "a\nb", "x" * 300, f"a.{'y' * 300}.w")
LEADING_OUT = ("/abs", "..", "../x")
"""Names that a zip archive cannot have: it would be unpacked outside of its folder."""
OUTPUTS = ({"path": "m.safetensors"}, {"path": "f/"}, {"path": "m.pt"}, {"path": "dcp/", "format": "dcp"},
           {"path": "m.npz"}, {"path": "orbax/", "format": "orbax"})  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output["path"])
def test_every_other_name_comes_back_from_every_format(output: Mapping[str, Any], here: Path) -> None:
    names = tuple(name for name in NAMES if output["path"] != "orbax/" or "" not in name.split("."))
    names = tuple(name for name in names if output["path"] != "m.npz" or name not in LEADING_OUT)
    plan = bs.load({"inputs": ["m::<tensors>"], "output": dict(output)})
    assert bs.check(plan, world(names)) == ()
    plan.run(durable=False, world=world(names))
    found = bs.open(str(output["path"]))
    assert sorted(found) == sorted(names)
    for at, name in enumerate(names):
        np.testing.assert_array_equal(found[name], ONE + at)
    assert sorted(here.iterdir()) == [here / str(output["path"])]


def test_a_header_that_readers_would_refuse_is_told_by_check(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_layout, "MAX_HEADER", 400)
    names = tuple(f"layers.{at}.weight" for at in range(8))
    single = bs.load({"inputs": ["m::<tensors>"], "output": "m.safetensors"})
    (found,) = bs.check(single, world(names))
    assert "more than readers accept" in found.message
    cut = bs.load({"inputs": ["m::<tensors>"], "output": {"path": "m/", "shard": "24B"}})
    assert bs.check(cut, world(names)) == ()
