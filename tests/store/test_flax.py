"""Files of flax: written by `flax.serialization` and read, written by us and restored by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import serialization
from flax.training.train_state import TrainState

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import DTYPES, FLOAT32, Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.atomic import publish, stage
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.flax.layout import check_flax
from brainsurgery_jax.store.flax.writer import open_writer
from tests.checkpoints import bits, counting, normal, np_dtype, write_raw

TREE = {
    "encoder": {"layer": {"0": {"kernel": normal((4, 6)), "bias": counting((6,), ml_dtypes.bfloat16)}}},
    "head": {"kernel": normal((6, 3), np.float16)},
    "ids": np.arange(5),
}


@pytest.fixture(scope="module")
def state() -> TrainState:
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))


def put(path: Path, tree: Any) -> Path:
    path.write_bytes(serialization.msgpack_serialize(tree))
    return path


def packed(value: object) -> bytes:
    """What msgpack makes of a value; its own type admits None, too."""
    return bytes(msgpack.packb(value) or b"")


def run(plan: dict[str, Any]) -> None:
    bs.load(plan).run(durable=False)


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in flax.traverse_util.flatten_dict(tree, sep=".").items()}


def equal(found: Any, wanted: Any) -> bool:
    left, right = flat(found), flat(wanted)
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and left[k].shape == right[k].shape and bits(left[k]) == bits(right[k])
        for k in left
    )


def test_a_file_of_flax_is_read_with_all_its_dtypes(tmp_path: Path):
    tree = {d.name: normal((3, 4)).astype(np_dtype(d)) for d in DTYPES if d.numpy and not d.is_bool}
    tree |= {"flags": np.array([True, False]), "none": np.empty((0, 3), np.float32), "scalar": np.float32(7)}
    found = bs.open(str(put(tmp_path / "model.msgpack", tree)))
    assert equal({name: found[name] for name in found}, tree)


def test_a_train_state_comes_back_as_flax_restores_it(tmp_path: Path, state: TrainState):
    (tmp_path / "checkpoint_100").write_bytes(serialization.to_bytes(state))
    plan = {
        "inputs": [str(tmp_path / "checkpoint_100")],
        "transforms": [{"scale_": {"target": "params.kernel", "by": 2}}],
        "output": str(tmp_path / "out.msgpack"),
    }
    run(plan)
    restored: Any = serialization.from_bytes(state, (tmp_path / "out.msgpack").read_bytes())
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert type(restored.step) is int
    assert np.array_equal(restored.params["kernel"], np.asarray(state.params["kernel"]) * 2)
    assert all(map(np.array_equal, jax.tree.leaves(restored.opt_state), jax.tree.leaves(state.opt_state)))


def test_what_is_written_unchanged_is_what_flax_would_write(tmp_path: Path):
    tree = TREE | {"step": 100, "rate": 0.5, "done": True, "name": "a", "empty": {}, "nothing": None, "b": {"c": {}}}
    made = serialization.msgpack_serialize(serialization.to_state_dict(tree))
    (tmp_path / "a.msgpack").write_bytes(made)
    run({"inputs": [str(tmp_path / "a.msgpack")], "transforms": [], "output": str(tmp_path / "b.msgpack")})
    restored = serialization.msgpack_restore((tmp_path / "b.msgpack").read_bytes())
    assert jax.tree.structure(restored) == jax.tree.structure(serialization.msgpack_restore(made))
    wide = {"step": 2**40, "w": TREE["ids"], "n": np.ones((300, 70))}
    put(tmp_path / "c.msgpack", wide)
    run({"inputs": [str(tmp_path / "c.msgpack")], "transforms": [], "output": str(tmp_path / "d.msgpack")})
    names = ("w", "n", "step")
    found = serialization.msgpack_restore((tmp_path / "d.msgpack").read_bytes())
    assert all(type(found[n]) is type(wide[n]) and np.array_equal(found[n], wide[n]) for n in names)


def test_arrays_alone_are_written_byte_for_byte_as_flax_writes_them(tmp_path: Path):
    bs.save(str(tmp_path / "a.msgpack"), TREE)
    assert (tmp_path / "a.msgpack").read_bytes() == serialization.msgpack_serialize(TREE)


@pytest.mark.parametrize("nbytes", [0, 1, 12, 240, 250, 65_500, 65_530, 70_000])
def test_every_size_has_the_heads_that_flax_gives_it(tmp_path: Path, nbytes: int):
    bs.save(str(tmp_path / "a.msgpack"), {"x": np.zeros(nbytes, np.uint8)})
    assert (tmp_path / "a.msgpack").read_bytes() == serialization.msgpack_serialize({"x": np.zeros(nbytes, np.uint8)})


def test_arrays_in_chunks_are_one_tensor_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree = {"w": normal((7, 11)), "small": np.arange(3, dtype=np.int8)}
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    put(tmp_path / "a.msgpack", tree)
    source = open_source(str(tmp_path / "a.msgpack"))
    assert source.header.tensors["w"].aval.shape == (7, 11)
    assert np.array_equal(source.read("w"), tree["w"])
    assert np.array_equal(source.read("w", ((1, 6, 2), (0, 11, 3))), tree["w"][1:6:2, ::3])
    assert np.array_equal(source.read_range("w", 5, 70), tree["w"].reshape(-1)[5:70])
    assert source.file_run("w", 0, 77) is None
    assert source.file_run("w", 10, 20) is not None
    source.close()
    run({"inputs": [str(tmp_path / "a.msgpack")], "transforms": [], "output": str(tmp_path / "b.safetensors")})
    assert np.array_equal(bs.open(str(tmp_path / "b.safetensors"))["w"], tree["w"])


def test_large_arrays_are_written_in_the_chunks_of_flax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree = {"small": np.arange(3, dtype=np.int8), "w": normal((7, 11))}
    avals = {"small": Aval((3,), DTYPES[2]), "w": Aval((7, 11), next(d for d in DTYPES if d.name == "float32"))}
    staged = stage(str(tmp_path / "a.msgpack"))
    writer = open_writer(staged, avals, WriteOptions(directory=False, metadata={}), most=40)
    writer.put("small", 0, tree["small"])
    rows = tree["w"].reshape(-1)[:66].reshape(11, 6)
    writer.put_rows("w", np.arange(11) * 6, rows)
    writer.put("w", 66, tree["w"].reshape(-1)[66:])
    publish([writer.finish()])  # type: ignore[list-item]
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    assert (tmp_path / "a.msgpack").read_bytes() == serialization.msgpack_serialize(tree)


def save_stream(path: Path, tree: Any) -> Path:
    """As EasyLM writes a train state."""
    packer = msgpack.Packer()
    with path.open("wb") as file:
        for keys, value in flax.traverse_util.flatten_dict(tree).items():
            file.write(packer.pack((keys, serialization.to_bytes(value))))
    return path


def load_stream(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        pairs = msgpack.Unpacker(file, max_buffer_size=0)
        return {".".join(keys): serialization.from_bytes(None, value) for keys, value in pairs}


def test_a_stream_of_easylm_is_read_and_written(tmp_path: Path):
    save_stream(tmp_path / "streaming_params", {"params": TREE})
    transforms = [{"move": {"from": "params.head.kernel", "to": "params.lm_head.kernel"}}]
    out = {"path": str(tmp_path / "out.msgpack"), "options": {"stream": True}}
    run({"inputs": [str(tmp_path / "streaming_params")], "transforms": transforms, "output": out})
    found = load_stream(tmp_path / "out.msgpack")
    wanted = {f"params.{k}".replace("params.head", "params.lm_head"): v for k, v in flat(TREE).items()}
    assert found.keys() == wanted.keys()
    assert all(bits(found[k]) == bits(wanted[k]) and found[k].dtype == wanted[k].dtype for k in found)


def test_shards_and_their_index_are_those_of_transformers(tmp_path: Path):
    shards = {
        "flax_model-00001-of-00002.msgpack": {"encoder": TREE["encoder"]},
        "flax_model-00002-of-00002.msgpack": {},
    }
    shards["flax_model-00002-of-00002.msgpack"] = {"head": TREE["head"], "ids": TREE["ids"]}
    (tmp_path / "in").mkdir()
    for name, tree in shards.items():
        put(tmp_path / "in" / name, tree)
    home = {k: n for n, tree in shards.items() for k in flax.traverse_util.flatten_dict(tree, sep="/")}
    index = {"metadata": {"total_size": 0}, "weight_map": home}
    (tmp_path / "in" / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    out = {"path": f"{tmp_path}/out/", "format": "flax", "shard": "100B"}
    run({"inputs": [str(tmp_path / "in")], "transforms": [], "output": out})
    written = json.loads((tmp_path / "out" / "flax_model.msgpack.index.json").read_text())
    merged: dict[str, Any] = {}
    for name in sorted(set(written["weight_map"].values())):
        shard = serialization.msgpack_restore((tmp_path / "out" / name).read_bytes())
        flattened = flax.traverse_util.flatten_dict(shard, sep="/")
        assert all(written["weight_map"][key] == name for key in flattened)
        merged |= flattened
    assert equal(flax.traverse_util.unflatten_dict(merged, sep="/"), TREE)
    assert len(set(written["weight_map"].values())) > 1


def test_a_folder_of_flax_is_read_and_written(tmp_path: Path):
    (tmp_path / "in").mkdir()
    put(tmp_path / "in" / "flax_model.msgpack", TREE)
    (tmp_path / "in" / "config.json").write_text("{}")
    run({"inputs": [str(tmp_path / "in")], "transforms": [], "output": {"path": f"{tmp_path}/o/", "format": "flax"}})
    names = ["brainsurgery.lock.json", "config.json", "flax_model.msgpack"]
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == names
    assert equal(serialization.msgpack_restore((tmp_path / "o" / "flax_model.msgpack").read_bytes()), TREE)


def test_odd_entries_do_not_refuse_the_rest(tmp_path: Path):
    tree = {"w": TREE["ids"], "blob": b"abc", "c": 1j}
    raw = serialization.msgpack_serialize(tree)
    raw = b"\x84" + raw[1:] + packed("odd") + packed(msgpack.ExtType(42, b"xy"))
    (tmp_path / "a.msgpack").write_bytes(raw)
    with pytest.raises(StoreError, match=r"'odd': cannot be read: it is of the type 42"):
        open_source(str(tmp_path / "a.msgpack"))
    source = open_source(f"{tmp_path}/a.msgpack::-odd")
    assert {*source.header.tensors} == {"w", "c"}
    assert source.header.left_out == {"blob": "bytes"}
    assert source.read("c").item() == 1j


def test_every_file_that_is_cut_off_is_refused(tmp_path: Path):
    whole = serialization.msgpack_serialize({"a": {"b": np.arange(3), "c": "text"}, "n": 300})
    for end in range(len(whole)):
        (tmp_path / "a.msgpack").write_bytes(whole[:end])
        with pytest.raises(StoreError, match=r"is cut off|is empty|longer than the file"):
            open_source(str(tmp_path / "a.msgpack"))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"\xc1", "the byte 0xc1"),
        (b"\x81\xa1a\x01\x00", "something after its end"),
        (b"\x91" * 200 + b"\x00", "more than 100 levels"),
        (b"\x82\xa1a\x01\xa1a\x01", "the key 'a' twice"),
        (b"\x81\xa1\xff\x01", "text that is not UTF-8"),
        (b"\x81\xc3\x01", "a key that is neither"),
        (b"\xdd\xff\xff\xff\xff\x00", "a container that is longer"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[2], "float32", b"abcd"]))}), "takes 8 bytes, found 4"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[-1], "float32", b""]))}), "without shape, dtype"),
        (msgpack.packb({"a": msgpack.ExtType(2, msgpack.packb([1.0]))}), "a complex number without"),
        (packed([["a"], b"\x01"]) + packed(7), "holds something else"),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {}}}), "without shape or chunks"),
    ],
)
def test_what_flax_does_not_write_is_refused(tmp_path: Path, raw: bytes, problem: str):
    (tmp_path / "a.msgpack").write_bytes(raw)
    with pytest.raises(StoreError, match=problem):
        open_source(str(tmp_path / "a.msgpack"))


def test_what_a_file_of_flax_cannot_hold_is_said_before(tmp_path: Path):
    bs.save(str(tmp_path / "a.safetensors"), {"a": np.ones(3)})
    plan = {"inputs": [str(tmp_path / "a.safetensors")], "output": str(tmp_path / "a.msgpack")}
    steps = [{"copy": {"from": "a", "to": "a.b"}}]
    (problem,) = bs.check(bs.load(plan | {"transforms": steps}))
    assert "'a': is the prefix of 'a.b'" in problem.message
    assert problem.hint == "Rename one of the two: a key of flax holds a tensor, or more keys."
    bs.load(plan | {"transforms": [*steps, {"move": {"from": "a", "to": "c"}}]}).run(durable=False)
    assert {*serialization.msgpack_restore((tmp_path / "a.msgpack").read_bytes())} == {"a", "c"}


def test_packed_elements_go_to_safetensors(tmp_path: Path):
    write_raw(tmp_path / "a.safetensors", {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"xy")
    plan = {"inputs": [str(tmp_path / "a.safetensors")], "transforms": []}
    (problem,) = bs.check(bs.load(plan | {"output": str(tmp_path / "a.msgpack")}))
    assert "flax has no dtype float4_e2m1fn" in problem.message
    assert problem.hint == "Write safetensors, which carries the packed bytes."
    bs.load(plan | {"output": str(tmp_path / "b.safetensors")}).run(durable=False)


def test_an_entry_of_a_stream_holds_less_than_4_gb(tmp_path: Path):
    avals = {"w": Aval((1 << 30,), FLOAT32)}
    options = WriteOptions(False, {}, options={"stream": True})
    with pytest.raises(StoreError, match=r"Write it without the option `stream`\."):
        check_flax("a.msgpack", avals, options)
    check_flax("a.msgpack", avals, WriteOptions(False, {}))
    check_flax("a.msgpack", {"w": Aval((1 << 29,), FLOAT32)}, options)
