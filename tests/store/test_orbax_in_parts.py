"""Orbax checkpoints of which several processes write a part each are those that one process writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp1
import pytest

from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.io.encoded import share
from brainsurgery_jax.store.orbax.encode import encode, encode_part, merge_parts
from brainsurgery_jax.store.orbax.source import OrbaxSource

TREE = {
    "layers": [{"w": np.arange(12.0).reshape(3, 4)}, {"w": np.ones((5,), np.int8), "none": None}],
    "pair": (jnp.full((2, 3), 2, jnp.bfloat16), 7),
    "note": "a text",
    "empty": {},
    "large": np.arange(3000, dtype=np.float32).reshape(30, 100),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> OrbaxSource:
    """A checkpoint of orbax with all kinds of leaves."""
    path = tmp_path_factory.mktemp("given") / "tree"
    ocp1.save(str(path), TREE, custom_metadata={"made": "here"})
    return OrbaxSource(str(path))


def write(folder: Path, source: OrbaxSource, processes: int, options: Mapping[str, object]) -> Path:
    arrays = {name: source.read(name) for name in source.header.tensors}
    avals: dict[str, Aval] = {name: info.aval for name, info in source.header.tensors.items()}
    how = WriteOptions(True, source.header.metadata, options=options, tree=source.header.tree, processes=processes)
    folder.mkdir()
    if processes == 1:
        encode(str(folder), arrays, how)
        return folder
    for process in reversed(range(processes)):
        own = {name: arrays[name] for name in share(avals, process, processes)}
        encode_part(str(folder), own, how._replace(process=process))
    shapes = {name: np.broadcast_to(np.zeros((), a.dtype), a.shape) for name, a in arrays.items()}
    merge_parts(str(folder), shapes, how)
    return folder


def tables(folder: Path) -> dict[str, Any]:
    """The small files of a checkpoint, by name."""
    names = ("_METADATA", "_sharding", "_strings.json", "process_0")
    found = {path.name: json.loads(path.read_text()) for path in folder.rglob("*") if path.name in names}
    found["custom"] = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    return found


def names(folder: Path) -> set[str]:
    """What lies in a checkpoint beside the folders of processes."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("ocdbt.process_")}


OPTIONS = [{}, {"version": "v0"}, {"compression": True}, {"chunk": 4000, "version": "v0"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("processes", [2, 5, 9])
def test_parts_of_several_processes_merge_into_the_checkpoint_of_one(
    tmp_path: Path, given: OrbaxSource, options: dict[str, object], processes: int
):
    one, many = (write(tmp_path / str(count), given, count, options) for count in (1, processes))
    assert tables(many) == tables(one)
    assert names(many) == names(one)
    assert 2 <= len([*many.rglob("ocdbt.process_*")]) <= processes
    first, second = OrbaxSource(str(one)), OrbaxSource(str(many))
    assert second.header.tensors.keys() == first.header.tensors.keys()
    assert all(np.array_equal(second.read(name), first.read(name)) for name in first.header.tensors)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_orbax_restores_what_several_processes_wrote(tmp_path: Path, given: OrbaxSource, version: str):
    folder = write(tmp_path / "many", given, 3, {"version": version})
    restored = ocp.PyTreeCheckpointer().restore(folder) if version == "v0" else ocp1.load(str(folder))
    wanted = jax.tree.leaves(TREE)
    found = jax.tree.leaves(restored)
    assert len(found) == len(wanted)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_shares_are_balanced_by_bytes_and_hold_every_tensor_once():
    avals = {f"t{n}": Aval((100 + 7 * n % 13, 10), BY_NAME["float32"]) for n in range(40)}
    shares = [share(avals, k, 4) for k in range(4)]
    assert sorted(name for own in shares for name in own) == sorted(avals)
    loads = [sum(avals[name].nbytes for name in own) for own in shares]
    assert max(loads) * 4 <= 1.1 * sum(loads)
