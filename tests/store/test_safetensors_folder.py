"""Folders of shards: what is read, in which order, and an index that must tell the truth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.index_files import INDEX
from brainsurgery_jax.store.safetensors.source import open_safetensors


def shards(folder: Path, **files: list[str]) -> Path:
    """Files `one=["a"]` -> one.safetensors with a tensor `a`; every tensor holds the number of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (stem, names) in enumerate(files.items()):
        save_file({name: np.full(2, number, np.float32) for name in names}, folder / f"{stem}.safetensors")
    return folder


def index(folder: Path, weight_map: object) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return folder


FIRST, SECOND = "model-00001-of-00002", "model-00002-of-00002"


def test_without_an_index_all_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    source = open_safetensors(str(shards(tmp_path, **{SECOND: ["a"], FIRST: ["c"]})))
    assert [os.path.basename(path) for path in source.header.files] == [f"{FIRST}.safetensors", f"{SECOND}.safetensors"]
    assert list(source.header.tensors) == ["c", "a"]
    assert source.read("a")[0] == 0


def test_an_index_says_which_files_count(tmp_path: Path) -> None:
    folder = index(
        shards(tmp_path, one=["a"], two=["b"], old=["a", "b"]), {"b": "two.safetensors", "a": "one.safetensors"}
    )
    source = open_safetensors(str(folder))
    assert list(source.header.tensors) == ["a", "b"]
    assert source.read("a")[0] == 0


def test_an_index_may_name_files_in_folders_below(tmp_path: Path) -> None:
    shards(tmp_path / "sub", one=["a"])
    source = open_safetensors(str(index(tmp_path, {"a": "sub/one.safetensors"})))
    assert source.read("a")[0] == 0


def test_metadata_of_the_first_file_wins(tmp_path: Path) -> None:
    save_file({"a": np.ones(1)}, tmp_path / f"{FIRST}.safetensors", metadata={"format": "pt", "who": "first"})
    save_file({"b": np.ones(1)}, tmp_path / f"{SECOND}.safetensors", metadata={"who": "second", "more": "yes"})
    metadata = open_safetensors(str(tmp_path)).header.metadata
    assert metadata == {"format": "pt", "who": "first", "more": "yes"}


def test_training_args_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    shards(tmp_path, model=["a"])
    (tmp_path / "training_args.bin").write_bytes(b"pickle")
    assert list(open_safetensors(str(tmp_path)).header.tensors) == ["a"]


def test_a_name_in_two_files_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=rf"{SECOND}.safetensors: tensor 'a': is also in .*{FIRST}.safetensors, and no i"
    ):
        open_safetensors(str(shards(tmp_path, **{FIRST: ["a"], SECOND: ["a"]})))


ONE, TWO = "one.safetensors", "two.safetensors"
BAD_INDEXES = {
    "a shard that is missing": ({"a": ONE, "b": "twoo.safetensors"}, f"'twoo.safetensors', .* not there.*'{TWO}'"),
    "tensors in the wrong shards": ({"a": TWO, "b": ONE}, f"'a': should be in {TWO}, but it is in {ONE}"),
    "a tensor that no shard holds": ({"a": ONE, "b": TWO, "c": ONE}, f"'c': should be in {ONE}, but no shard holds it"),
    "a path upwards": ({"a": f"../{ONE}", "b": TWO}, "'../one.safetensors', which is outside"),
    "a path upwards in the middle": ({"a": f"x/../{ONE}", "b": TWO}, "which is outside"),
    "an absolute path": ({"a": f"/{ONE}", "b": TWO}, "'/one.safetensors', which is outside"),
    "a number for a path": ({"a": 1}, "tensor 'a': names no file for it, but 1"),
    "an empty path": ({"a": ""}, "tensor 'a': names no file for it"),
    "a folder for a path": ({"a": "."}, "which is not there"),
    "no tensors": ({}, "has no weight_map with tensors in it"),
    "a list": ([ONE], "its weight_map is not an object"),
}


def test_of_a_missing_shard_no_other_number_is_suggested(tmp_path: Path) -> None:
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(StoreError, match=r"which is not there\.\n +Fetch that file, too"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("fault", BAD_INDEXES)
def test_an_index_that_does_not_tell_the_truth_is_refused(tmp_path: Path, fault: str) -> None:
    weight_map, message = BAD_INDEXES[fault]
    with pytest.raises(StoreError, match=rf"index.json: .*{message}"):
        open_safetensors(str(index(shards(tmp_path, one=["a"], two=["b"]), weight_map)))


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    folder = index(shards(tmp_path, one=["a", "extra"]), {"a": "one.safetensors"})
    with pytest.raises(StoreError, match=r"tensor 'extra': is in one.safetensors, but the index does not list it"):
        open_safetensors(str(folder))


def test_a_second_copy_of_a_listed_tensor_is_refused(tmp_path: Path) -> None:
    folder = index(shards(tmp_path, one=["a"], two=["a", "b"]), {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(
        StoreError, match=r"tensor 'a': is in two.safetensors, but the index lists it in one.safetensors"
    ):
        open_safetensors(str(folder))


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": {"a": "x", "a": "y"}}', '{"weight_map"'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(StoreError, match=r"the index is (not valid JSON|a JSON list)"):
        open_safetensors(str(tmp_path))


def test_a_shard_that_links_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    shards(tmp_path / "private", one=["a"])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "one.safetensors").symlink_to(tmp_path / "private" / "one.safetensors")
    with pytest.raises(StoreError, match=r"'one.safetensors', a link that leads out of its folder"):
        open_safetensors(str(index(tmp_path / "model", {"a": "one.safetensors"})))


def test_the_cache_of_the_hub_is_made_of_links_to_its_blobs(tmp_path: Path) -> None:
    shards(tmp_path / "blobs", hash=["a"])
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "one.safetensors").symlink_to("../../blobs/hash.safetensors")
    assert list(open_safetensors(str(index(snapshot, {"a": "one.safetensors"}))).header.tensors) == ["a"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "notes.txt"], "holds no checkpoint at its top: it holds config.json, notes.txt"),
        ([], "holds no checkpoint at its top: it is empty"),
        ([f"{n}.txt" for n in range(12)], "and 4 more"),
    ],
)
def test_a_folder_without_a_checkpoint_says_what_it_holds(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(StoreError, match=message):
        open_source(str(tmp_path))


def test_hundreds_of_shards_take_few_descriptors(tmp_path: Path) -> None:
    shards(tmp_path, **{f"model-{n:05}-of-00100": [f"t{n}"] for n in range(100)})
    before = len(os.listdir("/dev/fd"))
    source = open_safetensors(str(tmp_path), open_files=5)
    assert [source.read(f"t{n}")[0] for n in range(100)] == list(range(100))
    assert len(os.listdir("/dev/fd")) <= before + 5
    source.close()
    assert len(os.listdir("/dev/fd")) == before
