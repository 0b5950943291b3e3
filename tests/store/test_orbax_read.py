"""Orbax checkpoints, written by orbax itself in all its layouts, as a source of tensors."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as old
import orbax.checkpoint.experimental.v1 as new
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.key_paths import ListIndex
from brainsurgery_jax.store.key_tree import OtherLeaf
from brainsurgery_jax.store.orbax import source as orbax
from brainsurgery_jax.store.orbax.source import OrbaxSource
from tests.checkpoints import SAVABLE, bits, counting, normal, np_dtype

TENSORS = {
    "params.decoder.layers.0.kernel": normal((8, 6)),
    "params.decoder.layers.1.kernel": normal((8, 6), seed=1),
    "params.embedding": normal((633, 5), ml_dtypes.bfloat16),
    "params.scale": counting((7,), np.int32),
    "step": np.array(12),
}
TREE = {
    "params": {
        "decoder": {"layers": [{"kernel": TENSORS[f"params.decoder.layers.{i}.kernel"]} for i in range(2)]},
        "embedding": TENSORS["params.embedding"],
        "scale": TENSORS["params.scale"],
    },
    "step": TENSORS["step"],
}
CHUNKS = 64


def standard(path: Path, tree: Any = TREE) -> Path:
    with old.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def pytree(path: Path, *, use_ocdbt: bool = True, use_zarr3: bool = False) -> Path:
    with old.Checkpointer(old.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)) as checkpointer:
        checkpointer.save(path, TREE)
    return path


def second(path: Path, tree: Any = TREE, *, chunk: int | None = None, **choices: bool) -> Path:
    context = new.Context()
    for name, value in choices.items():
        setattr(context.array.saving, name, value)
    context.array.saving.storage_options.chunk_byte_size = chunk
    with context:
        new.save(str(path), tree, custom_metadata={"plan": "p.yaml", "epoch": 3})
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "v0 standard": standard,
    "v0 pytree": pytree,
    "v0 one folder a leaf": lambda path: pytree(path, use_ocdbt=False),
    "v0 one folder a leaf, zarr 3": lambda path: pytree(path, use_ocdbt=False, use_zarr3=True),
    "v0 zarr 3": lambda path: pytree(path, use_ocdbt=True, use_zarr3=True),
    "v1": second,
    "v1 not compressed": lambda path: second(path, use_compression=False),
    "v1 one folder a leaf": lambda path: second(path, use_ocdbt=False),
    "v1 zarr 2": lambda path: second(path, use_zarr3=False),
    "v1 zarr 2 not compressed": lambda path: second(path, use_zarr3=False, use_compression=False),
    "v1 chunks": lambda path: second(path, chunk=CHUNKS),
    "v1 chunks not compressed": lambda path: second(path, chunk=CHUNKS, use_compression=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of every layout, named like it."""
    root = tmp_path_factory.mktemp("orbax")
    for name, writer in WRITERS.items():
        writer(root / name)
    return root


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint of the second API, to be spoiled."""
    return Path(shutil.copytree(folder / "v1 not compressed", tmp_path / "model"))


@pytest.fixture(params=WRITERS)
def source(folder: Path, request: pytest.FixtureRequest) -> Iterator[OrbaxSource]:
    made = OrbaxSource(str(folder / request.param))
    yield made
    made.close()


def test_names_shapes_and_dtypes_come_in_the_order_of_the_tree(source: OrbaxSource) -> None:
    shown = {name: str(info.aval) for name, info in source.header.tensors.items()}
    assert list(shown) == list(TENSORS)
    assert shown["params.embedding"] == "bf16[633,5]"
    assert shown["step"] == "i64[]"


def test_no_tensor_byte_is_read_for_the_header(source: OrbaxSource) -> None:
    assert source.bytes_read == 0


def test_tensors_are_what_orbax_was_given(source: OrbaxSource) -> None:
    for name, array in TENSORS.items():
        read = source.read(name)
        assert (read.shape, read.dtype, bits(read)) == (array.shape, array.dtype, bits(array))


def test_ranges_of_elements_are_those_of_the_tensor(source: OrbaxSource) -> None:
    for name, array in TENSORS.items():
        for start, stop in ((0, array.size), (array.size // 3, array.size // 2), (array.size - 1, array.size), (0, 0)):
            assert bits(source.read_range(name, start, stop)) == bits(array.reshape(-1)[start:stop])


@pytest.mark.parametrize("box", [((3, 20, 1), (0, 5, 1)), ((1, 30, 7), (1, 4, 2)), ((5, 5, 1), (0, 5, 1))])
def test_boxes_are_those_of_the_tensor(source: OrbaxSource, box: tuple[tuple[int, int, int], ...]) -> None:
    read = source.read("params.embedding", box)
    assert bits(read) == bits(TENSORS["params.embedding"][tuple(slice(*span) for span in box)])
    assert read.ctypes.data % 64 == 0 or not read.size


def test_of_an_array_that_is_not_compressed_only_what_is_asked_for_is_read(folder: Path) -> None:
    source = OrbaxSource(str(folder / "v1 not compressed"))
    source.read_range("params.embedding", 10, 20)
    assert source.bytes_read == 20


@pytest.mark.parametrize("dtype", SAVABLE, ids=str)
def test_every_dtype_is_read(dtype: Any, tmp_path: Path) -> None:
    array = counting((2, 4)).astype(np_dtype(dtype))
    read = OrbaxSource(str(second(tmp_path / "m", {"x": array}))).read("x")
    assert (read.dtype, bits(read)) == (array.dtype, bits(array))


@pytest.mark.parametrize(
    ("name", "wider"), [("int4", np.int8), ("int2", np.int8), ("float4_e2m1fn", ml_dtypes.float8_e4m3fn)]
)
def test_a_dtype_that_we_lack_is_read_as_one_that_holds_its_values(name: str, wider: Any, tmp_path: Path) -> None:
    array = np.array([0, 1, -1, -2, 1], getattr(ml_dtypes, name))
    read = OrbaxSource(str(second(tmp_path / "m", {"x": array}))).read("x")
    assert read.dtype == wider
    assert read.astype(float).tolist() == array.astype(float).tolist()


# --- where the tree lies


def steps(path: Path, *numbers: int) -> Path:
    with old.CheckpointManager(path) as manager:
        for number in numbers:
            manager.save(number, args=old.args.StandardSave(TREE))
    return path


def test_the_folder_of_a_manager_with_one_step_is_that_step(tmp_path: Path) -> None:
    root = steps(tmp_path / "run", 3)
    for path in (root, root / "3", root / "3" / "default"):
        assert list(open_source(str(path)).header.tensors) == list(TENSORS)


def test_of_several_steps_one_must_be_named(tmp_path: Path) -> None:
    root = steps(tmp_path / "run", 9, 10)
    with pytest.raises(StoreError, match=r"holds 2 steps: 9, 10\n.*Name one, for example .*run/10"):
        open_source(str(root))


def test_of_several_trees_in_a_step_one_must_be_named(tmp_path: Path) -> None:
    with old.CheckpointManager(tmp_path / "run", item_names=("items", "opt", "note")) as manager:
        items, opt, note = old.args.PyTreeSave(TREE), old.args.PyTreeSave({"mu": np.ones(2)}), old.args.JsonSave({})
        manager.save(0, args=old.args.Composite(items=items, opt=opt, note=note))
    with pytest.raises(StoreError, match=r"holds 2 trees of tensors: items, opt\n.*Name one, for example .*items"):
        open_source(str(tmp_path / "run" / "0"))
    assert list(open_source(str(tmp_path / "run" / "0" / "opt")).header.tensors) == ["mu"]


def test_the_tree_inside_a_checkpoint_can_be_named(folder: Path) -> None:
    source = open_source(str(folder / "v1" / "state"))
    assert source.header.metadata["plan"] == "p.yaml"


def test_other_files_in_the_folder_do_no_harm(copied: Path) -> None:
    (copied / "config.json").write_text("{}")
    assert list(open_source(str(copied)).header.tensors) == list(TENSORS)


# --- metadata


def test_custom_metadata_is_text_and_what_was_none_is_json(folder: Path) -> None:
    header = OrbaxSource(str(folder / "v1")).header
    assert header.metadata == {"plan": "p.yaml", "epoch": "3"}
    assert header.tree.json == ("epoch",)
    layers = [path[3] for name, path in header.tree.paths.items() if name.startswith("params.decoder.layers")]
    assert {type(key) for key in layers} == {ListIndex}


def test_leaves_that_are_no_tensors_are_beside_them(tmp_path: Path) -> None:
    tree = {"w": np.ones(2), "name": "gpt2", "rate": 0.5, "none": None, "opt": {}}
    source = OrbaxSource(str(second(tmp_path / "m", tree)))
    assert list(source.header.tensors) == ["rate", "w"]
    tree = source.header.tree
    assert tree.others == {"name": OtherLeaf("string", "gpt2"), "none": OtherLeaf("None"), "opt": OtherLeaf("Dict")}
    assert {name: kind.holder for name, kind in tree.types.items()} == {"rate": "scalar", "w": "np.ndarray"}


def test_a_key_with_a_dot_in_it_is_one_key(tmp_path: Path) -> None:
    source = OrbaxSource(str(second(tmp_path / "m", {"a.b": {"c": np.ones(2)}, "a/d": np.ones(3)})))
    assert list(source.header.tensors) == ["a.b.c", "a/d"]
    assert source.header.tree.paths == {"a.b.c": ("a.b", "c")}


# --- caches and memory


def test_a_compressed_leaf_that_is_one_chunk_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = normal((64, 1024))
    monkeypatch.setattr(orbax, "CACHE", 1 << 16)
    source = OrbaxSource(str(second(tmp_path / "m", {"x": array})))
    source.read_range("x", 0, 10)
    (tmp_path / "m" / "state" / "d").rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "m" / "state" / "ocdbt.process_0")
    assert bits(source.read_range("x", 10, 60_000)) == bits(array.reshape(-1)[10:60_000])


# --- damage


def spoil_tree(path: Path) -> None:
    (path / "state" / "_METADATA").write_text("{")


def forget_a_leaf(path: Path) -> None:
    tree = path / "state" / "_METADATA"
    table = json.loads(tree.read_text())
    entry = json.loads(json.dumps(next(iter(table["tree_metadata"].values()))))
    entry["key_metadata"][-1]["key"] = "other"
    tree.write_text(json.dumps(table | {"tree_metadata": {**table["tree_metadata"], "x": entry}}))


def undo_commit(path: Path) -> None:
    (path / "commit_success.txt").unlink()
    place = path / "_CHECKPOINT_METADATA"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"commit_timestamp_nsecs": None}))


def spoil_manifest(path: Path) -> None:
    manifest = path / "state" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:-9] + b"corrupted")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_tree, r"_METADATA: is not valid JSON"),
        (forget_a_leaf, r"tensor 'params.decoder.layers.0.other': is listed, but its data are missing"),
        (undo_commit, r"only a part was written: it has no commit_success.txt.*\n.*or name an earlier step"),
        (spoil_manifest, r"cannot be read: .*manifest.ocdbt"),
        (lambda path: (path / "state" / "manifest.ocdbt").unlink(), r"its manifest.ocdbt is missing"),
        (lambda path: (path / "state" / "_METADATA").unlink(), r"without a tree of tensors: no _METADATA in it"),
        (lambda path: shutil.rmtree(path / "state" / "ocdbt.process_0"), r"tensor 'params.embedding': .*is missing"),
    ],
)
def test_a_checkpoint_that_is_damaged_or_half_written_is_refused(
    copied: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(copied)
    plan = {"inputs": [f"m::{copied}"], "output": str(copied.parent / "out")}
    with pytest.raises((StoreError, bs.PlanError), match=message):
        bs.load(plan).run()
    assert os.listdir(copied.parent) == ["model"]


def test_a_save_that_was_cut_off_is_no_checkpoint(copied: Path, tmp_path: Path) -> None:
    cut = copied.rename(tmp_path / "7.orbax-checkpoint-tmp")
    with pytest.raises(StoreError, match="of which only a part was written"):
        open_source(str(cut))


def data_files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.parent.name == "d" and file.stat().st_size > 1000]


def test_data_that_were_cut_off_are_an_error_and_nothing_is_written(copied: Path) -> None:
    plan = {"inputs": [f"m::{copied}"], "output": str(copied.parent / "out")}
    loaded = bs.load(plan)
    for file in data_files(copied):
        os.truncate(file, 100)
    with pytest.raises((StoreError, bs.PlanError), match=r"/d/[0-9a-f]+ is cut off: it ends after 100 bytes"):
        loaded.run()
    assert os.listdir(copied.parent) == ["model"]


def test_a_chunk_file_that_was_cut_off_is_named(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder / "v0 one folder a leaf", tmp_path / "model"))
    (chunk,) = (file for file in (path / "params.scale").iterdir() if not file.name.startswith(".z"))
    chunk.write_bytes(b"")
    with pytest.raises(StoreError, match=r"tensor 'params.scale': .*(params.scale/0|cannot be read)"):
        OrbaxSource(str(path)).read("params.scale")


def test_a_file_that_changes_during_the_run_is_noticed(copied: Path) -> None:
    source = OrbaxSource(str(copied))
    os.utime(copied / "state" / "manifest.ocdbt", ns=(0, 0))
    with pytest.raises(StoreError, match=r"manifest.ocdbt: changed while running"):
        source.verify_unchanged()


def test_a_name_that_is_not_there_is_explained(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"has no tensor 'stop' \(5 tensors\). Did you mean 'step'"):
        OrbaxSource(str(folder / "v1")).read("stop")


def unfilled(path: Path) -> None:
    """As if orbax had left out chunks of zeros, which it did by default once."""
    table = json.loads((path / "_METADATA").read_text())
    (path / "_METADATA").write_text(json.dumps(table | {"store_array_data_equal_to_fill_value": False}))


def without_chunks(folder: Path, writer: str, place: Path) -> Path:
    """A checkpoint in which all data of one leaf are missing, and its metadata are there."""
    path = Path(shutil.copytree(folder / writer, place))
    for chunk in ("0", "c"):
        part = path / "params.scale" / chunk
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("writer", ["v0 one folder a leaf", "v0 one folder a leaf, zarr 3"])
def test_a_chunk_that_is_missing_is_an_error_before_anything_is_read(folder: Path, tmp_path: Path, writer: str) -> None:
    path = without_chunks(folder, writer, tmp_path / "model")
    with pytest.raises(StoreError, match=r"tensor 'params.scale': its data are missing: there is no chunk (c/)?0"):
        OrbaxSource(str(path))


def test_where_orbax_left_out_zeros_a_missing_chunk_is_zeros(folder: Path, tmp_path: Path) -> None:
    path = without_chunks(folder, "v0 one folder a leaf, zarr 3", tmp_path / "model")
    unfilled(path)
    assert OrbaxSource(str(path)).read("params.scale").tolist() == [0] * 7


def test_an_array_without_a_fill_value_has_all_its_chunks_or_has_lost_some(folder: Path, tmp_path: Path) -> None:
    path = without_chunks(folder, "v0 one folder a leaf", tmp_path / "model")
    unfilled(path)
    assert json.loads((path / "params.scale" / ".zarray").read_text())["fill_value"] is None
    with pytest.raises(StoreError, match=r"tensor 'params.scale': its data are missing: there is no chunk 0"):
        OrbaxSource(str(path))


@pytest.mark.parametrize("shape", [None, 7])
def test_metadata_with_a_value_of_another_kind_are_refused_in_our_words(
    folder: Path, tmp_path: Path, shape: int | None
) -> None:
    path = shutil.copytree(folder / "v0 one folder a leaf", tmp_path / "model")
    table = path / "params.scale" / ".zarray"
    table.write_text(json.dumps({**json.loads(table.read_text()), "shape": shape}))
    with pytest.raises(StoreError, match=r"tensor 'params.scale': .* hold a value of another kind than zarr has there"):
        OrbaxSource(str(path))


# --- what is imported


def test_neither_jax_nor_orbax_is_imported_to_read(folder: Path) -> None:
    code = (
        "import sys; from brainsurgery_jax.store.detect import open_source;"
        f"source = open_source({str(folder / 'v1')!r}); source.read('step');"
        "print([name for name in ('jax', 'orbax', 'orbax.checkpoint') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.parametrize("look", range(1, 9))
def test_a_disk_that_fails_at_any_look_at_the_tree_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    path = standard(tmp_path / "c")
    stat, looks = os.stat, iter(range(1, 100))

    def failing(place: Any, **how: Any) -> os.stat_result:
        if str(place).endswith("/_METADATA") and next(looks) == look:
            raise OSError(errno.EIO, os.strerror(errno.EIO), place)
        return stat(place, **how)

    monkeypatch.setattr(os, "stat", failing)
    try:
        assert set(bs.open(path)) == {*TENSORS}
    except StoreError as told:
        assert next(looks) > look and str(path) in str(told)
