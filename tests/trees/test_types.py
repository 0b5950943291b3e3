"""Of what type leaves are: what comes in comes out, and comparisons see where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore

import brainsurgery_jax as bs
from tests.trees.judge import VERSIONS, assert_same, restore, save, tree_of

TREE = {
    "key": jax.random.key(0),
    "rbg": jax.random.key(0, impl="rbg"),
    "keys": jax.random.split(jax.random.key(1), 3),
    "raw": jax.random.PRNGKey(2),
    "int4": jnp.arange(-8, 8, dtype=jnp.int4).reshape(4, 4),
    "float4": jnp.asarray([0.5, -1, 3, 6], jnp.float4_e2m1fn),
    "float8": jnp.ones(4, jnp.float8_e4m3fn),
    "numpy": np.ones(3, np.float64),
    "jax": jnp.ones(3),
    "step": 7,
    "rate": 0.5,
    "flag": True,
}


def plan(source: Path | str, target: Path, *steps: Any, version: str = "v0") -> bs.Plan:
    """A plan from a checkpoint to one of orbax."""
    output = {"path": f"{target}/", "format": "orbax", "options": {"version": version}}
    return bs.load({"inputs": [f"m::{source}"], "transforms": list(steps), "output": output})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "in", TREE)


@pytest.mark.parametrize("version", VERSIONS)
def test_leaves_come_out_as_orbax_gives_them(source: Path, tmp_path: Path, version: str) -> None:
    plan(source, tmp_path / "out", version=version).run(durable=False)
    assert tree_of(tmp_path / "out") == tree_of(source)
    assert_same(restore(tmp_path / "out", version), restore(source, "v0"))


@pytest.mark.parametrize("version", VERSIONS)
def test_leaves_in_memory_are_saved_as_orbax_saves_them(source: Path, tmp_path: Path, version: str) -> None:
    bs.save(f"{tmp_path / 'out'}/", TREE, format="orbax", options={"version": version}, durable=False)
    assert tree_of(tmp_path / "out") == tree_of(source)
    assert_same(restore(tmp_path / "out", version), restore(source, "v0"))


def test_what_orbax_has_no_word_for_is_refused_and_kept_by_safetensors(tmp_path: Path) -> None:
    tree = {"q": jnp.arange(16, dtype=jnp.uint4)}
    with pytest.raises(bs.PlanError, match="orbax has no dtype uint4"):
        bs.save(f"{tmp_path / 'out'}/", tree, format="orbax")
    bs.save(str(tmp_path / "m.safetensors"), tree, durable=False)
    assert bs.open(str(tmp_path / "m.safetensors")).tree.types["q"].stored == "uint4"


NARROW = ("int2", "int4", "float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz",
          "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")  # fmt: skip
"""What tensorstore, and so orbax, has a word for."""

LACKING = ("uint2", "uint4", "float8_e4m3")
"""What JAX has, and tensorstore does not."""


def every_value(name: str) -> np.ndarray:
    """All values of a narrow type, in rows of two."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    bits = int(name.lstrip("uint")) if "int" in name else int(name[5])
    codes = np.arange(1 << bits, dtype=np.uint8)
    return codes.view(dtype).reshape(-1, 2) if bits == 8 else codes.astype(np.uint8).view(dtype).reshape(-1, 2)


def same_values(left: Any, right: Any) -> bool:
    return np.array_equal(np.asarray(left).astype(np.float32), np.asarray(right).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("holder", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_types_keep_every_value(name: str, holder: Any, tmp_path: Path) -> None:
    tree = {"a": holder(every_value(name)), "b": jnp.ones(2)}
    plan(save(tmp_path / "in", tree), tmp_path / "out", {"move": {"from": "a", "to": "c"}}).run(durable=False)
    bs.save(f"{tmp_path / 'ours'}/", tree, format="orbax", options={"version": "v0"}, durable=False)
    bs.save(str(tmp_path / "m.npz"), tree, durable=False)
    plan(tmp_path / "m.npz", tmp_path / "back").run(durable=False)
    for folder, key in (("out", "c"), ("ours", "a"), ("back", "a")):
        found = restore(tmp_path / folder, "v0")[key]
        assert str(found.dtype) == name
        assert same_values(found, tree["a"])


@pytest.mark.parametrize("name", LACKING)
def test_what_tensorstore_lacks_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    tree = {"a": jnp.asarray(every_value(name)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=f'Unsupported data type: "{name}"'):
        tensorstore.Spec({"driver": "array", "dtype": name})  # orbax fails so, in the middle of a save
    with pytest.raises(bs.PlanError, match=f"orbax has no dtype {name}"):
        bs.save(f"{tmp_path / 'ours'}/", tree, format="orbax")
    assert not (tmp_path / "ours").exists()
    bs.save(str(tmp_path / "m.npz"), tree, durable=False)
    assert same_values(bs.open(str(tmp_path / "m.npz"))["a"], tree["a"])


@pytest.mark.parametrize("middle", ["m.npz", "m.safetensors"])
def test_keys_narrow_types_and_numbers_come_back_from_other_formats(source: Path, tmp_path: Path, middle: str) -> None:
    bs.load({"inputs": [f"m::{source}"], "output": str(tmp_path / middle)}).run(durable=False)
    plan(tmp_path / middle, tmp_path / "out").run(durable=False)
    assert_same(restore(tmp_path / "out", "v0", TREE), TREE)
    found = restore(tmp_path / "out", "v0")
    kinds = {name: str(leaf.dtype) for name, leaf in found.items() if hasattr(leaf, "dtype")}
    assert {name: kinds[name] for name in ("key", "rbg", "int4", "float4")} == {
        "key": "key<fry>", "rbg": "key<rbg>", "int4": "int4", "float4": "float4_e2m1fn",
    }  # fmt: skip
    assert (found["step"], found["rate"], found["flag"]) == (7, 0.5, True)


def test_what_moves_elements_keeps_narrow_types_and_keys(source: Path, tmp_path: Path) -> None:
    steps = [
        {"copy": {"from": "int4::[:2]", "to": "half"}},
        {"concat": {"from": ["int4", "int4"], "to": "twice"}},
        {"copy": {"from": "keys::[1:]", "to": "last"}},
        {"stack": {"from": ["key", "key"], "to": "pair"}},
    ]
    plan(source, tmp_path / "out", *steps).run(durable=False)
    found = restore(tmp_path / "out", "v0")
    assert {name: (str(found[name].dtype), found[name].shape) for name in ("half", "twice", "last", "pair")} == {
        "half": ("int4", (2, 4)), "twice": ("int4", (8, 4)), "last": ("key<fry>", (2,)), "pair": ("key<fry>", (2,)),
    }  # fmt: skip
    assert np.array_equal(found["half"], TREE["int4"][:2])


def test_what_is_computed_is_what_it_was_computed_in(source: Path, tmp_path: Path) -> None:
    steps = [
        {"scale_": {"target": "int4", "by": 3}},
        {"cast": {"from": "key", "to": "number", "dtype": "float32"}},
        {"scale_": {"target": "step", "by": 2}},
        {"cast_": {"target": "jax", "to": "bfloat16"}},
    ]
    plan(source, tmp_path / "out", *steps).run(durable=False)
    found = restore(tmp_path / "out", "v0")
    assert (str(found["int4"].dtype), str(found["number"].dtype)) == ("int8", "float32")
    assert np.array_equal(np.asarray(found["int4"], int), np.asarray(TREE["int4"], int) * 3)
    assert (found["step"], type(found["step"])) == (14, int)
    assert (type(found["jax"]), str(found["jax"].dtype)) == (type(TREE["jax"]), "bfloat16")


def test_the_sharding_of_a_leaf_stays_while_its_shape_does(tmp_path: Path) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    source = save(tmp_path / "in", {"a": jax.device_put(jnp.ones((4, 2)), sharding), "b": jnp.ones((2, 2))})
    plan(source, tmp_path / "out", {"move": {"from": "a", "to": "c"}}).run(durable=False)
    assert restore(tmp_path / "out", "v0")["c"].sharding == sharding
    plan(source, tmp_path / "less", {"copy": {"from": "a::[:3]", "to": "d"}}).run(durable=False)
    assert isinstance(restore(tmp_path / "less", "v0")["d"].sharding, jax.sharding.SingleDeviceSharding)


# --- comparisons


def differences(left: Any, right: Any, folder: Path) -> dict[str, tuple[str, str]]:
    """What `diff` finds of two trees beside values."""
    found = bs.diff(str(save(folder / "left", left)), str(save(folder / "right", right)))
    assert found.same == (not found.leaves)
    return dict(found.leaves)


def test_diff_sees_types(tmp_path: Path) -> None:
    key = jax.random.key(0)
    left = {"key": key, "w": jnp.ones(2), "n": 3, "q": jnp.ones(2, jnp.int4), "same": jnp.ones(1)}
    right = {
        "key": jax.random.key_data(key), "w": np.ones(2, np.float32), "n": np.array(3), "q": jnp.ones(2, jnp.int8),
        "same": jnp.ones(1),
    }  # fmt: skip
    assert differences(left, right, tmp_path) == {
        "key": ("key<fry>", "a jax.Array"), "w": ("a jax.Array", "a numpy array"),
        "n": ("a Python number", "a numpy array"), "q": ("int4 in a jax.Array", "a jax.Array"),
    }  # fmt: skip


def test_diff_sees_containers_and_empty_leaves(tmp_path: Path) -> None:
    left = {"l": [jnp.ones(1)], "none": None, "only": {}, "both": None}
    right = {"l": {"0": jnp.ones(1)}, "none": [], "both": None}
    assert differences(left, right, tmp_path) == {
        "none": ("None", "[]"), "only": ("{}", ""), "l.0": ("['l'][0]", "['l']['0']"),
    }  # fmt: skip


def test_where_a_format_tells_nothing_of_a_tree_it_is_not_compared(tmp_path: Path) -> None:
    tree = {"w": jnp.ones(2), "none": None}
    bs.save(str(tmp_path / "m.pt"), tree, durable=False)
    assert bs.diff(str(save(tmp_path / "left", tree)), str(tmp_path / "m.pt")).same


UNCHANGED = {"assert": {"unchanged": {}}}
IDENTICAL = {"assert": {"identical": {"left": "m::.*", "right": r"n::\g<0>"}}}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"delete": {"target": "none"}}, "'none' came in as None, and is nothing now"),
        ({"move": {"from": "none", "to": "new"}}, "'none' came in as None, and is nothing now"),
        ({"copy": {"from": "(l)(.*)", "to": r"k\2"}}, "added: 'k.0'"),
    ],
)
def test_unchanged_sees_the_tree(tmp_path: Path, step: Any, message: str) -> None:
    source = save(tmp_path / "in", {"l": [jnp.ones(1)], "none": None})
    with pytest.raises(bs.PlanError, match=message):
        plan(source, tmp_path / "out", step, UNCHANGED).run()


def test_identical_sees_types(tmp_path: Path) -> None:
    key = jax.random.key(0)
    left, right = save(tmp_path / "l", {"k": key}), save(tmp_path / "r", {"k": jax.random.key_data(key)})
    compare = bs.load({"inputs": [f"m::{left}", f"n::{right}"], "transforms": [IDENTICAL]})
    with pytest.raises(bs.PlanError, match=r"'k' is key<fry> on the left and a jax.Array on the right"):
        compare.run()
    bs.load({"inputs": [f"m::{left}", f"n::{left}"], "transforms": [IDENTICAL]}).run()


def test_the_step_diff_sees_the_tree(tmp_path: Path) -> None:
    left, right = save(tmp_path / "l", {"w": jnp.ones(1), "e": None}), save(tmp_path / "r", {"w": np.ones(1, "f4")})
    step = {"diff": {"mode": "aliases", "left_alias": "m", "right_alias": "n"}}
    (said,) = bs.load({"inputs": [f"m::{left}", f"n::{right}"], "transforms": [step]}).run().said
    assert "'e' is None and nothing" in said
    assert "'w' is a jax.Array and a numpy array" in said
