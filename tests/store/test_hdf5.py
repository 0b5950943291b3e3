"""Files of HDF5: weights of Keras, and what h5py writes otherwise."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.hdf5 import source as hdf5
from tests.checkpoints import counting, normal

ARRAYS = {
    "layers.dense.vars.0": normal((4, 3)),
    "layers.dense.vars.1": normal((3,), np.float16),
    "layers.dense.vars.2": counting((5,), ml_dtypes.bfloat16),
    "optimizer.vars.0": np.array(7, np.int32),
}

NO_GROUP = "Rename one of the two: a name of HDF5 is a dataset, or a group."

KERAS = """
import sys
import keras, numpy as np
def model(seed):
    keras.utils.set_random_seed(seed)
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(),
                             keras.layers.Dense(2, dtype="bfloat16")])
    made.compile("adam")
    made.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    return made
place = sys.argv[2]
if sys.argv[1] == "save":
    model(0).save_weights(place + "/a.weights.h5")
else:
    wanted, found = model(0), model(1)
    found.load_weights(place + "/b.weights.h5")
    for left, right in zip(wanted.variables, found.variables, strict=True):
        assert left.dtype == right.dtype and np.array_equal(np.asarray(left.value), np.asarray(right.value)), left.path
    print("same")
"""


def keras(*arguments: str) -> str:
    """What a program says that uses Keras on JAX."""
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_NUMPY_RANK_PROMOTION": "allow",
           "JAX_NUMPY_DTYPE_PROMOTION": "standard"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", KERAS, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_keras_loads_the_weights_that_went_through_us(tmp_path: Path):
    keras("save", str(tmp_path))
    for source, target in (("a.weights.h5", "a.safetensors"), ("a.safetensors", "b.weights.h5")):
        plan = {"inputs": [str(tmp_path / source)], "transforms": [], "output": str(tmp_path / target)}
        bs.load(plan).run(durable=False)
    assert "layers.dense.vars.0" in bs.open(str(tmp_path / "a.safetensors"))
    assert "same" in keras("load", str(tmp_path))


@pytest.mark.parametrize("how", [{}, {"chunks": True}, {"compression": "gzip", "shuffle": True}], ids=str)
def test_every_way_to_store_a_dataset_is_read(tmp_path: Path, how: dict[str, Any]):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in ARRAYS.items():
            data = array.view("V2") if array.dtype == ml_dtypes.bfloat16 else array
            file.create_dataset(name.replace(".", "/"), data=data, **(how if array.ndim else {}))
        file.create_dataset("big", data=np.arange(4, dtype=">f8"), **how)
        file.create_dataset("note", data="text")
    source = open_source(str(tmp_path / "a.h5"))
    assert {*source.header.tensors} == {*ARRAYS, "big"}
    assert source.header.left_out == {"note": "text"}
    for name, array in ARRAYS.items():
        found = source.read(name)
        assert found.dtype == array.dtype and np.array_equal(found, array), name
        assert np.array_equal(source.read_range(name, 0, min(3, array.size)), array.reshape(-1)[:3])
    assert np.array_equal(source.read("layers.dense.vars.0", ((1, 4, 2), (0, 2, 1))), normal((4, 3))[1:4:2, :2])
    assert source.read("big").tolist() == [0, 1, 2, 3]
    source.verify_unchanged()
    source.close()


def test_a_dataset_of_another_kind_is_an_error_until_it_is_left_out(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(3)
        file.create_dataset("ragged", (2,), h5py.vlen_dtype(np.float32))
    with pytest.raises(StoreError, match="'ragged': cannot be read: it is of the type object"):
        open_source(str(tmp_path / "a.h5"))
    assert [*bs.open(f"{tmp_path}/a.h5::-ragged")] == ["x"]


def test_what_hdf5_cannot_hold_is_said_before(tmp_path: Path):
    arrays = {"a/b": np.ones(2), "c": np.ones(2, ml_dtypes.float8_e5m2), "d": np.ones(1)}
    bs.save(str(tmp_path / "a.npz"), arrays)
    plan: dict[str, Any] = {"inputs": [str(tmp_path / "a.npz")], "output": str(tmp_path / "a.h5")}
    steps: list[Any] = [{"copy": {"from": "d", "to": "d.e"}}]
    for step, problem, hint in (
        ({"move": {"from": "a/b", "to": "a.b"}}, "HDF5 has no such name", "Give it a name without slashes."),
        ({"cast_": {"target": "c", "to": "float16"}}, "HDF5 has no dtype", "Write safetensors, or cast it first."),
        (
            {"move": {"from": "d", "to": "f"}},
            "'d': is the prefix of 'd.e'",
            "Rename one of the two: a name of HDF5 is a dataset, or a group.",
        ),
    ):
        (found,) = bs.check(bs.load(plan | {"transforms": steps}))
        assert problem in found.message
        assert found.hint == hint
        steps = [*steps, step]
    bs.load(plan | {"transforms": steps}).run(durable=False)
    with h5py.File(tmp_path / "a.h5") as file:
        assert [*file] == ["a", "c", "d", "f"]


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setattr(hdf5, "find_spec", lambda name: None)
    with pytest.raises(StoreError, match=r"needs h5py, .*\n    Install it: `pip install 'brainsurgery-jax\[hdf5\]'`."):
        open_source(str(tmp_path / "a.h5"))


def test_a_damaged_file_is_refused(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(100)
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:-400])
    with pytest.raises(StoreError, match="is no file of HDF5 that can be read: truncated file"):
        open_source(str(tmp_path / "b.h5"))


def test_a_type_that_numpy_lacks_is_read_as_h5py_converts_it(tmp_path: Path):
    """bfloat16 as HDF5 itself describes it: two bytes an element, which h5py gives as float32."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    values = np.array([1.0, -2.5, 3.0, 0.5], np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((4,))
        stored = h5py.h5d.create(file.id, b"w", kind, space)
        stored.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
        file["after"] = np.arange(100, dtype=np.float32)
    source = open_source(str(tmp_path / "a.h5"))
    assert np.array_equal(source.read("w").astype(np.float32), values)
    assert np.array_equal(source.read("after"), np.arange(100, dtype=np.float32))


def test_a_dataset_in_another_file_is_an_error_until_it_is_left_out(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = normal((3,))
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "x")
    with pytest.raises(StoreError, match="'elsewhere': cannot be read: it lies in another file"):
        open_source(str(tmp_path / "a.h5"))
    assert {*open_source(f"{tmp_path}/a.h5::-elsewhere").header.tensors} == {"v"}


class CountedFile(io.FileIO):
    """A file that counts the bytes that are read of it."""

    seen = 0

    def readinto(self, buffer: Any) -> int | None:
        got = super().readinto(buffer)
        self.seen += got or 0
        return got


@pytest.mark.parametrize("chunks", [(1536, 2048), (1536, 512)], ids=["one in each row", "four in each row"])
def test_a_chunk_is_decoded_once_though_a_tensor_is_read_in_pieces(tmp_path: Path, chunks: tuple[int, int]) -> None:
    path, piece = str(tmp_path / "m.h5"), 1 << 19
    arrays = {name: np.arange(1536 * 2048, dtype=np.int32).reshape(1536, 2048) + at for at, name in enumerate("ab")}
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=chunks, compression="gzip", compression_opts=1)
    with CountedFile(path) as counted, h5py.File(counted, "r") as file:
        avals = {name: Aval(array.shape, BY_NAME["int32"]) for name, array in arrays.items()}
        source = hdf5.ChunkedDatasets(path, file, {"a": "/a", "b": "/b"}, avals)
        before = counted.seen
        for name, array in arrays.items():
            for at in range(0, array.size, piece):
                assert np.array_equal(source.read_range(name, at, at + piece), array.reshape(-1)[at : at + piece])
        source.close()
        assert counted.seen - before < 1.1 * os.path.getsize(path)


def test_groups_that_hold_each_other_are_read_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        groups = [file.create_group(f"g{i}") for i in range(60)]
        for outer, inner in pairwise(groups):
            outer["a"] = outer["b"] = inner  # 2**60 paths
        groups[-1]["back"] = file["/"]
        groups[-1]["x"] = np.ones(3, np.float32)
    with closing(open_source(str(tmp_path / "m.h5"))) as source:
        assert [name.rpartition(".")[2] for name in source.header.tensors] == ["x"]


def test_a_table_that_points_beyond_the_file_is_damage(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["g/x"] = np.ones(3, np.float32)
    whole = (tmp_path / "m.h5").read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        (tmp_path / "m.h5").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            open_source(str(tmp_path / "m.h5")).close()
        except StoreError:
            refused += 1
    assert refused > 10
