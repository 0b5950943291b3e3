"""Checkpoints of orbax before version 0.5, some of whose leaves lie in one file. `orbax_0_4_8.zip` was written by orbax
0.4.8 with flax 0.7.5: leaves with fewer than two axes aggregated, without OCDBT and with it; all leaves aggregated; and
by a checkpoint manager."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.key_tree import OtherLeaf

LAYOUTS = ("some_plain", "some_ocdbt", "all", "manager")
TENSORS = {
    "params.layers.0.bias": np.array([1, 2], np.int32),
    "params.layers.0.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "params.layers.1.bias": np.array([3, 4], np.int32),
    "params.layers.1.kernel": np.full((2, 3), 0.5, ml_dtypes.bfloat16),
    "rate": np.array(0.25),
    "step": np.array(7),
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(Path(__file__).parent / "orbax_0_4_8.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def check(path: Path) -> None:
    """The tensors are all there, with their values and dtypes."""
    source = open_source(str(path))
    assert {*source.header.tensors} == {*TENSORS}
    for name, wanted in TENSORS.items():
        found = source.read(name)
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted), name
        assert np.array_equal(source.read_range(name, 0, wanted.size), wanted.reshape(-1))
    source.verify_unchanged()
    source.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_aggregated_and_what_is_not_are_one_checkpoint(old: Path, layout: str):
    check(old / layout)


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_the_first_versions_wrote_no_metadata_of_the_tree(old: Path, layout: str):
    (old / layout / "_METADATA").unlink()
    check(old / layout)


@pytest.mark.parametrize("place", ["manager", "manager/5", "manager/5/default"])
def test_the_tree_of_a_manager_is_found_or_asked_for(old: Path, place: str):
    check(old / place)


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_leaves_that_are_no_tensors_are_kept(old: Path, layout: str):
    source = open_source(str(old / layout))
    tree = source.header.tree
    source.close()
    assert tree.others == {
        "name": OtherLeaf("string", "tiny"),
        "nothing": OtherLeaf("None"),
        "empty": OtherLeaf("Dict"),
    }
    assert tree.path("params.layers.0.kernel") == ("params", "layers", 0, "kernel")
    assert {name for name, kind in tree.types.items() if kind.holder == "scalar"} == {"step", "rate"}


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_orbax_of_today_restores_the_same_tree_from_what_we_write(old: Path, layout: str):
    out = {"path": f"{old}/new/", "format": "orbax", "options": {"version": "v0"}}
    bs.load({"inputs": [str(old / layout)], "transforms": [], "output": out}).run(durable=False)
    with ocp.PyTreeCheckpointer() as checkpointer:
        before, after = (checkpointer.restore(old / name) for name in (layout, "new"))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert all(map(_same, jax.tree.leaves(before), jax.tree.leaves(after)))


def _same(left: Any, right: Any) -> bool:
    """Values and dtypes; of what is no array also the type."""
    if not hasattr(left, "shape"):
        return type(left) is type(right) and left == right
    return left.dtype == right.dtype and np.array_equal(left, right)


@pytest.mark.parametrize("layout", ["some_plain", "all"])
def test_what_lacks_the_file_of_leaves_is_incomplete(old: Path, layout: str):
    (old / layout / "checkpoint").unlink()
    with pytest.raises(StoreError, match=r"its checkpoint is missing.*some of the leaves\n.*copied as a whole"):
        open_source(str(old / layout))
    shutil.copy(old / "manager" / "5" / "default" / "checkpoint", old / layout / "checkpoint")
    if layout == "some_plain":
        check(old / layout)


def test_what_lacks_an_array_is_incomplete(old: Path):
    shutil.rmtree(old / "some_plain" / "params.layers.1.kernel")
    with pytest.raises(StoreError, match=r"'params.layers.1.kernel': is listed, but its data are missing"):
        open_source(str(old / "some_plain"))


def test_an_unfinished_save_is_called_so(old: Path):
    os.rename(old / "some_plain", old / "3.orbax-checkpoint-tmp-1700000000")
    with pytest.raises(StoreError, match="is an orbax checkpoint of which only a part was written"):
        open_source(str(old / "3.orbax-checkpoint-tmp-1700000000"))
    assert not (old / "some_plain").exists()


def test_an_old_checkpoint_may_be_replaced_as_a_whole(old: Path):
    out = {"path": f"{old}/all/", "format": "orbax", "overwrite": True}
    bs.load({"inputs": [str(old / "some_ocdbt")], "transforms": [], "output": out}).run(durable=False)
    assert not (old / "all" / "checkpoint").exists()
    check(old / "all")
