"""Trees of zarr arrays as T5X and Pax lay them out, written by tensorstore and flax."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization, traverse_util

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source, output_kind
from brainsurgery_jax.store.formats import find_format
from tests.checkpoints import counting, normal

GZIP = {"id": "gzip", "level": 1}
ARRAYS = {
    "target.decoder.decoder_norm.scale": normal((6,)),
    "target.decoder.layers_0.mlp.wi.kernel": normal((8, 12), ml_dtypes.bfloat16),
    "target.token_embedder.embedding": normal((33, 6)),
    "state.param_states.token_embedder.embedding.v_row": counting((33,)),
}


def put_array(folder: Path, name: str, array: np.ndarray, driver: str = "zarr", **metadata: Any) -> dict[str, Any]:
    """Writes an array as a leaf; the arguments that tensorstore needs to open it, from the folder on."""
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/{name}/"}}
    store = ts.open(spec | ({"metadata": metadata} if metadata else {}), create=True, dtype=array.dtype.name,
                    shape=array.shape).result()  # fmt: skip
    store.write(array).result()
    return {"driver": driver, "dtype": array.dtype.name, "kvstore": {"driver": "gfile", "path": name}} | (
        {"metadata": {"shape": list(array.shape)} | metadata}
    )


def put_t5x(folder: Path, compressor: Any = GZIP) -> Path:
    """A train state as T5X saves it: large leaves beside the file, the others in it."""
    folder.mkdir()
    specs: dict[str, Any] = {
        name: put_array(folder, name, array, compressor=compressor, chunks=[5, *array.shape[1:]][: array.ndim])
        for name, array in ARRAYS.items()
    }
    specs["state.step"] = np.int32(1000)
    specs["state.param_states.decoder.decoder_norm.scale.v"] = np.ones(6, np.float32)
    cast = {"driver": "cast", "dtype": "float32", "base": specs["target.token_embedder.embedding"]}
    specs["target.token_embedder.embedding"] = cast
    tree = traverse_util.unflatten_dict(specs, sep=".")
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize({"version": 3, "optimizer": tree}))
    return folder


def check(path: Path, wanted: Mapping[str, np.ndarray]) -> None:
    source = open_source(str(path))
    assert {*source.header.tensors} >= {*wanted}
    for name, array in wanted.items():
        found = source.read(name)
        assert found.dtype == array.dtype and np.array_equal(found, array), name
        assert np.array_equal(source.read_range(name, 0, min(array.size, 5)), array.reshape(-1)[:5])
    source.close()


@pytest.mark.parametrize("compressor", [None, GZIP], ids=["plain", "gzip"])
def test_a_train_state_of_t5x_is_read(tmp_path: Path, compressor: Any):
    path = put_t5x(tmp_path / "checkpoint_1000", compressor)
    scale = np.ones(6, np.float32)
    check(path, ARRAYS | {"state.step": np.int32(1000), "state.param_states.decoder.decoder_norm.scale.v": scale})
    check(Path(f"{path}::target"), {"token_embedder.embedding": ARRAYS["target.token_embedder.embedding"]})


def test_a_train_state_of_t5x_is_converted(tmp_path: Path):
    path = put_t5x(tmp_path / "checkpoint_1000")
    plan = {"inputs": [f"{path}::target"], "transforms": [], "output": str(tmp_path / "model.msgpack")}
    bs.load(plan).run(durable=False)
    tree: Any = serialization.msgpack_restore((tmp_path / "model.msgpack").read_bytes())
    restored: dict[str, Any] = traverse_util.flatten_dict(tree, sep=".")
    wanted = {name.removeprefix("target."): a for name, a in ARRAYS.items() if name.startswith("target.")}
    assert restored.keys() == wanted.keys()
    assert all(np.array_equal(restored[name], array) for name, array in wanted.items())


def test_a_leaf_of_t5x_that_is_not_there_is_named(tmp_path: Path):
    path = put_t5x(tmp_path / "checkpoint_1000")
    (path / "target.decoder.decoder_norm.scale" / ".zarray").unlink()
    with pytest.raises(StoreError, match=r"'target.decoder.decoder_norm.scale': is listed, but its data are missing"):
        open_source(str(path))


@pytest.mark.parametrize("name", ["checkpoint_5.tmp-1700000000", "checkpoint_5.tmp", "tmp_checkpoint_5"])
def test_an_unfinished_save_is_called_so(tmp_path: Path, name: str):
    path = put_t5x(tmp_path / name)
    with pytest.raises(StoreError, match=r"is an unfinished save, by its name\n.*rename the folder"):
        open_source(str(path))
    check(path.rename(tmp_path / "checkpoint_5"), ARRAYS)


PAX = {
    "mdl_vars.params.lm.softmax.logits_ffn.linear.w": normal((6, 20)),
    "mdl_vars.params.lm.final_ln.scale": normal((6,), ml_dtypes.bfloat16),
    "step": np.array(100, np.uint32),
}


def put_pax(folder: Path, driver: str = "zarr") -> Path:
    for name, array in PAX.items():
        put_array(folder, name, array, driver)
    return folder


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("inner", ["", "state", "params"])
def test_a_folder_a_leaf_is_read_at_the_top_and_in_the_usual_folders(tmp_path: Path, driver: str, inner: str):
    path = tmp_path / "checkpoint_00000100"
    put_pax(path / inner, driver)
    (path / "metadata").mkdir()
    check(path, {name: array for name, array in PAX.items() if array.size > 5})
    assert np.array_equal(bs.open(str(path))["step"], PAX["step"])
    assert bs.open(str(path))["step"].dtype == np.uint32
    check(path / inner, {name: array for name, array in PAX.items() if array.size > 5})


def test_nested_folders_give_dotted_names(tmp_path: Path):
    put_array(tmp_path, "params/decoder/kernel", normal((4, 6)))
    put_array(tmp_path, "params/scale", normal((6,)))
    check(tmp_path, {"decoder.kernel": normal((4, 6)), "scale": normal((6,))})


def test_two_trees_are_told_apart_by_naming_one(tmp_path: Path):
    put_pax(tmp_path / "state")
    put_array(tmp_path, "params/w", normal((6,)))
    with pytest.raises(StoreError, match=f"holds 2 trees of arrays: state, params\n.*Name the one .*{tmp_path}/params"):
        open_source(str(tmp_path))
    check(tmp_path / "params", {"w": normal((6,))})


def test_two_arrays_of_one_name_are_refused(tmp_path: Path):
    put_array(tmp_path, "a.b", normal((6,)))
    put_array(tmp_path, "a/b", normal((6,)))
    with pytest.raises(StoreError, match=r"'a.b': is the name of two arrays\n    Save it again with other names."):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["t5x", "zarr"])
def test_what_is_only_read_is_no_format_of_an_output(name: str):
    with pytest.raises(ValueError, match=f"{name} is read, and not written. Write orbax"):
        output_kind("out/", find_format(name))
    (problem,) = bs.check(bs.load({"inputs": [], "transforms": [], "output": {"path": "out/", "format": name}}))
    assert "unknown format" in problem.message


def test_elements_within_a_chunk_without_compression_lie_one_after_the_other_in_its_file(tmp_path: Path) -> None:
    array = counting((9, 4))
    put_array(tmp_path / "model", "plain", array, chunks=[4, 4], compressor=None)
    put_array(tmp_path / "model", "packed", array, chunks=[9, 4], compressor=GZIP)
    source = open_source(str(tmp_path / "model"))
    run = source.file_run("plain", 18, 30)
    assert run is not None
    found = np.fromfile(run.file.name, np.uint8, run.nbytes, offset=run.offset)
    np.testing.assert_array_equal(found, array.reshape(-1)[18:30].view(np.uint8))
    assert source.file_run("plain", 14, 18) is None  # of two chunks
    assert source.file_run("packed", 0, 4) is None
    np.testing.assert_array_equal(source.read("plain"), array)


@pytest.mark.parametrize(
    ("driver", "change", "name"),
    [
        ("zarr", {"compressor": {"id": "lz4", "acceleration": 1}}, "lz4"),
        ("zarr", {"filters": [{"id": "delta", "dtype": "<f4"}]}, "delta"),
        ("zarr3", {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "lz4"}]}, "lz4"),
    ],
    ids=["compressor", "filter", "codec"],
)
def test_chunks_packed_by_what_tensorstore_does_not_know_are_refused_in_the_header(
    driver: str, change: dict[str, Any], name: str, tmp_path: Path
):
    put_array(tmp_path / "model", "w", normal((4, 4)), driver)
    document = tmp_path / "model" / "w" / (".zarray" if driver == "zarr" else "zarr.json")
    table = json.loads(document.read_text())
    document.write_text(json.dumps(table | change))
    message = f"tensor 'w': cannot be read: its chunks are packed by '{name}', which tensorstore does not know"
    with pytest.raises(
        StoreError, match=f"{re.escape(message)}\n    Save it with one of these compressors alone: blosc"
    ):
        open_source(str(tmp_path / "model"))
    packed = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd", "configuration": {"level": 1}}]
    metadata = {"compressor": {"id": "zstd", "level": 1}} if driver == "zarr" else {"codecs": packed}
    shutil.rmtree(tmp_path / "model")  # saved as the remedy says
    put_array(tmp_path / "model", "w", normal((4, 4)), driver, **metadata)
    check(tmp_path / "model", {"w": normal((4, 4))})
