"""Orbax checkpoints that we write, restored by orbax itself and by Flax, and what is refused before."""

from __future__ import annotations

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as old
import orbax.checkpoint.experimental.v1 as new
import pytest
from flax import nnx

import brainsurgery_jax as bs
from brainsurgery_jax.store.key_paths import NOTES, TupleIndex
from brainsurgery_jax.store.orbax import apart
from brainsurgery_jax.store.orbax import encode as orbax_encode
from tests.checkpoints import SAVABLE, bits, counting, normal, np_dtype, read, write

TENSORS = {"params.a.kernel": normal((6, 4)), "params.a.bias": normal((4,), ml_dtypes.bfloat16), "step": np.array(3)}


def converted(folder: Path, tensors: Any = None, steps: Any = (), **output: Any) -> Path:
    """An orbax checkpoint made by a plan from a safetensors file with these tensors."""
    source = write(
        folder / "in.safetensors", TENSORS if tensors is None else tensors, output.pop("input_metadata", None)
    )
    target = folder / "out"
    plan = {
        "inputs": [f"m::{source}"],
        "transforms": list(steps),
        "output": {"path": str(target), "format": "orbax", **output},
    }
    bs.load(plan).run()
    return target


def back(folder: Path, source: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint after it was converted to safetensors."""
    target = folder / "back.safetensors"
    bs.load({"inputs": [f"m::{source}"], "output": str(target)}).run(durable=False)
    return read(target)


def assert_restored(tree: Any) -> None:
    for name, array in TENSORS.items():
        leaf = tree
        for key in name.split("."):
            leaf = leaf[key]
        assert np.asarray(leaf).dtype == array.dtype
        assert bits(leaf) == bits(array)


# --- restored by orbax


def test_the_second_api_restores_it(tmp_path: Path) -> None:
    assert_restored(new.load(str(converted(tmp_path))))


def test_the_first_api_restores_its_tree(tmp_path: Path) -> None:
    path = converted(tmp_path)
    with old.StandardCheckpointer() as checkpointer:
        assert_restored(checkpointer.restore(path / "state"))


@pytest.mark.parametrize("checkpointer", [old.StandardCheckpointer, old.PyTreeCheckpointer])
def test_with_version_0_the_first_api_restores_the_checkpoint(tmp_path: Path, checkpointer: Any) -> None:
    path = converted(tmp_path, options={"version": "v0"}, metadata={"made": "here"})
    with checkpointer() as open_one:
        assert_restored(open_one.restore(path))
        assert open_one.metadata(path).custom_metadata["made"] == "here"


def test_with_version_0_it_may_be_the_item_of_a_step(tmp_path: Path) -> None:
    made = converted(tmp_path, options={"version": "v0"})
    (tmp_path / "run" / "0").mkdir(parents=True)
    made.rename(tmp_path / "run" / "0" / "items")
    with old.CheckpointManager(tmp_path / "run", item_names=("items",)) as manager:
        restored = manager.restore(0, args=old.args.Composite(items=old.args.PyTreeRestore()))
    assert_restored(restored["items"])


def test_one_leaf_of_it_is_restored_alone(tmp_path: Path) -> None:
    path = converted(tmp_path)
    context = new.Context()
    context.pytree.loading.partial_load = True
    with context:
        part = new.load(str(path), {"params": {"a": {"kernel": np.empty((6, 4), np.float32)}}})
    assert bits(part["params"]["a"]["kernel"]) == bits(TENSORS["params.a.kernel"])


@pytest.mark.parametrize("dtype", SAVABLE, ids=str)
def test_every_dtype_comes_back(tmp_path: Path, dtype: Any) -> None:
    array = counting((2, 4)).astype(np_dtype(dtype))
    path = converted(tmp_path, {"x": array})
    loaded = np.asarray(new.load(str(path))["x"])
    assert (loaded.dtype, bits(loaded)) == (array.dtype, bits(array))
    assert bits(back(tmp_path, path)["x"]) == bits(array)


def test_complex128_which_safetensors_lacks_can_be_written(tmp_path: Path) -> None:
    path = converted(tmp_path, {"x": normal((3,))}, [{"cast_": {"target": "x", "to": "complex128"}}])
    assert new.load(str(path))["x"].dtype == np.complex128


# --- restored by Flax


def test_a_linen_model_restores_its_parameters(tmp_path: Path) -> None:
    model = flax.linen.Dense(4)
    variables = model.init(jax.random.key(0), jnp.ones((1, 6)))
    path = converted(tmp_path, {f"params.{k}": np.asarray(v) for k, v in variables["params"].items()})
    with old.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(path / "state", jax.eval_shape(lambda: variables))
    assert bits(model.apply(restored, jnp.ones((1, 6)))) == bits(model.apply(variables, jnp.ones((1, 6))))


def test_an_nnx_model_restores_its_state(tmp_path: Path) -> None:
    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(model))
    path = converted(tmp_path, {name: np.asarray(value) for name, value in state.items()})
    fresh = nnx.Linear(6, 4, rngs=nnx.Rngs(1))
    with old.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(path / "state", nnx.to_pure_dict(nnx.state(fresh)))
    nnx.update(fresh, restored)
    assert bits(fresh(jnp.ones((1, 6)))) == bits(model(jnp.ones((1, 6))))


# --- what goes with it


def test_metadata_becomes_custom_metadata(tmp_path: Path) -> None:
    path = converted(tmp_path, input_metadata={"epoch": "3"}, metadata={"made": "here"})
    assert new.metadata(str(path)).custom_metadata == {"epoch": "3", "made": "here"}


def test_who_writes_on_after_a_stop_is_shut_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "partial"
    path.mkdir()
    monkeypatch.setattr(apart, "GRACE_S", 0)

    def write_on() -> None:
        for number in itertools.count():
            path.mkdir(exist_ok=True)  # as a key-value store does
            (path / f"chunk{number % 10}").write_text("x")

    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(write_on)
        apart._end(str(path), work)
        assert isinstance(work.exception(), FileExistsError | NotADirectoryError)  # by where the stop met it
    assert os.listdir(tmp_path) == []


def test_readers_ignore_the_side_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    path = converted(tmp_path)
    assert {"config.json", "tokenizer.json"} <= set(os.listdir(path))
    assert_restored(new.load(str(path)))
    with old.StandardCheckpointer() as checkpointer:
        assert_restored(checkpointer.restore(path / "state"))


def test_readers_ignore_the_side_files_at_the_top_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = converted(tmp_path, options={"version": "v0"})
    assert (path / "config.json").exists()
    with old.StandardCheckpointer() as checkpointer:
        assert_restored(checkpointer.restore(path))


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_side_files_come_back_and_files_of_orbax_do_not(tmp_path: Path, version: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = converted(tmp_path, options={"version": version})
    bs.load({"inputs": [f"m::{path}"], "output": str(tmp_path / "back")}).run(durable=False)
    assert sorted(os.listdir(tmp_path / "back")) == ["brainsurgery.lock.json", "config.json", "model.safetensors"]


def test_nothing_else_is_left_beside_it(tmp_path: Path) -> None:
    converted(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["in.safetensors", "out"]


# --- there and back


TREE = {
    "layers": [{"w": counting((2, 3))}, {"w": counting((3, 2))}],
    "pair": (counting((2,)), counting((3,))),
    "by_number": {3: counting((1,)), 20: counting((2,))},
    "a.b": {"c": counting((2,))},
    "name": "gpt2",
    "epochs": 7,
    "rate": 0.25,
    "none": None,
    "opt": {},
}


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    tree = {key: value for key, value in TREE.items() if key != "by_number"} | {"pair": list(TREE["pair"])}
    new.save(str(tmp_path / "in"), tree, custom_metadata={"epoch": 3, "plan": "p"})
    plan = {"inputs": [f"m::{tmp_path / 'in'}"], "output": {"path": str(tmp_path / "out"), "format": "orbax"}}
    bs.load(plan).run(durable=False)
    restored = new.load(str(tmp_path / "out"))
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(tree)))
    assert new.metadata(str(tmp_path / "out")).custom_metadata == {"epoch": 3, "plan": "p"}


def test_a_tree_comes_back_after_it_was_safetensors(tmp_path: Path) -> None:
    new.save(str(tmp_path / "in"), {"layers": TREE["layers"], "rate": 0.5})
    middle, out = str(tmp_path / "middle.safetensors"), str(tmp_path / "out")
    bs.load({"inputs": [f"m::{tmp_path / 'in'}"], "output": middle}).run(durable=False)
    bs.load({"inputs": [f"m::{middle}"], "output": {"path": out, "format": "orbax"}}).run(durable=False)
    restored = new.load(str(out))
    assert isinstance(restored["layers"], list)
    assert restored["rate"] == 0.5


def test_what_orbax_forgets_of_a_tree_is_kept_in_its_metadata(tmp_path: Path) -> None:
    notes = {"tuples": ["pair"], "integers": ["by_number"]}
    tensors = {"pair.0": counting((2,)), "pair.1": counting((3,)), "by_number.3": counting((1,))}
    path = converted(tmp_path, tensors, metadata={NOTES: json.dumps(notes)})
    assert isinstance(new.load(str(path))["pair"], tuple | list)
    custom: Any = new.metadata(str(path)).custom_metadata
    assert custom[NOTES] == json.dumps(notes, sort_keys=True)
    paths = bs.open(str(path)).source.header.tree.paths
    assert isinstance(paths["pair.1"][1], TupleIndex)
    assert paths["by_number.3"] == ("by_number", 3)


def test_metadata_that_is_no_longer_json_stays_text(tmp_path: Path) -> None:
    path = converted(tmp_path, metadata={NOTES: json.dumps({"json": ["epoch", "gone"]}), "epoch": "three"})
    assert new.metadata(str(path)).custom_metadata == {"epoch": "three"}


def test_a_path_may_look_odd(tmp_path: Path) -> None:
    folder = tmp_path / "100% a#b (c) é"
    folder.mkdir()
    assert bits(back(folder, converted(folder))["step"]) == bits(TENSORS["step"])


def test_there_and_back_gives_the_same_bytes(tmp_path: Path) -> None:
    returned = back(tmp_path, converted(tmp_path))
    assert {name: bits(array) for name, array in returned.items()} == {n: bits(a) for n, a in TENSORS.items()}


@pytest.mark.parametrize("options", [{"compression": True}, {"chunk": "1KB"}, {"chunk": "1KB", "compression": True}])
def test_chunks_and_compression_change_the_files_and_not_the_tensors(tmp_path: Path, options: Any) -> None:
    tensors = {"zeros": np.zeros((512, 64), np.float32), "x": normal((33, 65))}
    path = converted(tmp_path, tensors, options=options)
    assert {name: bits(array) for name, array in back(tmp_path, path).items()} == {
        n: bits(a) for n, a in tensors.items()
    }
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert (size < 100_000) == ("compression" in options)


@pytest.mark.parametrize("options", [{"compression": True}, {"compression": True, "version": "v0"}])
def test_what_is_saved_in_groups_is_one_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    monkeypatch.setattr(orbax_encode, "GROUP", 100)
    layers = [{"w": normal((4, 4), seed=n), "b": (normal((3,)), normal((20,)))} for n in range(5)]
    tree = {
        "layers": layers,
        "deep": {"er": [[normal((30,))], [normal((2,)), normal((30,))]]},
        "name": "x",
        "none": None,
    }
    new.save(str(tmp_path / "in"), tree, custom_metadata={"epoch": 3})
    output = {"path": str(tmp_path / "out"), "format": "orbax", "options": options}
    bs.load({"inputs": [f"m::{tmp_path / 'in'}"], "output": output}).run(durable=False)
    restored, expected = new.load(str(tmp_path / "out")), new.load(str(tmp_path / "in"))
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(expected)))
    assert new.metadata(str(tmp_path / "out")).custom_metadata == {"epoch": 3}


def test_computed_and_joined_tensors_are_written_from_a_scratch_file(tmp_path: Path) -> None:
    tensors = {f"h.{i}.w": normal((3, 4), seed=i) for i in range(4)} | {"x": normal((2,))}
    joined = {"from": [f"h.{i}.w" for i in range(4)], "to": "w", "dim": 1}
    steps = [{"concat": joined}, {"scale_": {"target": "x", "by": 2}}]
    restored = new.load(str(converted(tmp_path, tensors, steps)))
    assert bits(restored["x"]) == bits(tensors["x"] * 2)
    assert bits(restored["w"]) == bits(np.concatenate([tensors[f"h.{i}.w"] for i in range(4)], axis=1))


# --- what is refused, before anything is written


def refused(folder: Path, tensors: Any, **output: Any) -> str:
    source = write(folder / "in.safetensors", tensors)
    plan = {"inputs": [f"m::{source}"], "output": {"path": str(folder / "out"), "format": "orbax", **output}}
    (found,) = bs.check(bs.load(plan))
    with pytest.raises(bs.PlanError, match=r"output"):
        bs.load(plan).run()
    assert os.listdir(folder) == ["in.safetensors"]
    return str(found)


def test_an_array_without_elements_is_refused(tmp_path: Path) -> None:
    found = refused(tmp_path, {"w": counting((2,)), "none": np.ones((0, 4), np.float32)})
    assert "tensor 'none': orbax cannot store f32[0,4], which has no elements" in found


def test_a_tensor_beside_what_it_is_the_prefix_of_is_refused(tmp_path: Path) -> None:
    found = refused(tmp_path, {"a.b": counting((2,)), "a": counting((3,))})
    assert "tensor 'a': is the prefix of 'a.b': a tree cannot hold a tensor and more below it" in found


def test_a_path_that_orbax_would_take_for_a_pattern_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run[1]").mkdir()
    assert "orbax cannot write below a folder with '[' in its name" in refused(tmp_path / "run[1]", TENSORS)


def test_a_name_with_an_empty_part_is_refused(tmp_path: Path) -> None:
    assert "tensor 'a..b': a key of the tree would be empty" in refused(tmp_path, {"a..b": counting((2,))})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"options": {"version": "v2"}}, "option 'version': expected v0 or v1, got 'v2'"),
        ({"options": {"compression": "zstd"}}, "option 'compression': expected true or false, got 'zstd'"),
        ({"options": {"chunk": 64}}, "option 'chunk': expected a size, got 64"),
        (
            {"options": {"chunks": "1MB"}},
            "unknown option 'chunks' [output-options] Did you mean 'chunk'? Those of orbax are: version",
        ),
        ({"shard": "1GB"}, "orbax is not cut into shards by size"),
    ],
)
def test_an_output_that_makes_no_sense_for_orbax_is_refused(tmp_path: Path, output: Any, message: str) -> None:
    assert message in refused(tmp_path, {"w": counting((2,))}, **output).replace("\n    ", " ")


def test_options_of_another_format_are_refused(tmp_path: Path) -> None:
    found = refused(tmp_path, {"w": counting((2,))}, format="safetensors", options={"chunk": "1MB"})
    assert "unknown option 'chunk'" in found
    assert "safetensors has none" in found
