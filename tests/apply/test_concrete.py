"""`plan.apply` on concrete arrays: the bits of `run`, purity, and what comes back as it went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.documents import Document, NameTree, Parts
from tests.checkpoints import COMPUTABLE, FLOATS, INTEGERS, normal, np_dtype, plan_of, read, same, write

CHAIN = [
    {"scale_": {"target": "w", "by": 0.3}},
    {"add_": {"from": "v", "to": "w"}},
    {"clamp_": {"target": "w::[:, 1:]", "min": -0.5, "max": 0.7}},
    {"permute": {"from": "w", "to": "t", "order": [1, 0]}},
    {"matmul": {"from_a": "w", "from_b": "t", "to": "square"}},
    {"cast": {"from": "square", "to": "narrow", "dtype": "float8_e4m3fn"}},
    {"concat": {"from": ["w", "v"], "to": "both", "dim": 1}},
    {"fill": {"from": "w", "to": "noise", "mode": "rand", "distribution": "normal", "seed": 3}},
    {"subtract": {"from_a": "w", "from_b": "noise", "to": "w"}},
]
LOW_RANK = [{"phlora": {"target": "w", "target_a": "A", "target_b": "B", "rank": {"energy": 0.8}}}]


def assert_as_run(here: Path, tensors: dict[str, Any], steps: list[Any]) -> None:
    plan = plan_of(here, tensors, steps)
    bs.load(plan).run(durable=False)
    written = read(plan["output"]["path"])
    applied = bs.load(plan).apply(dict(tensors))
    assert sorted(applied) == sorted(written)
    for name, array in written.items():
        assert same(applied[name], array), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_apply_gives_the_bits_of_run_for_every_float(here: Path, dtype: Any):
    if dtype.name == "float8_e8m0fnu":  # a bare exponent: it holds no negative numbers to begin with
        tensors = {k: np.abs(normal((5, 7), seed=s)).astype(np_dtype(dtype)) for k, s in (("w", 1), ("v", 2))}
        return assert_as_run(here, tensors, [{"scale_": {"target": "w", "by": 2}}])
    return assert_as_run(here, {k: normal((5, 7), np_dtype(dtype), s) for k, s in (("w", 1), ("v", 2))}, CHAIN)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_apply_gives_the_bits_of_run_for_every_integer(here: Path, dtype: Any):
    tensors = {"w": np.arange(12).reshape(3, 4).astype(np_dtype(dtype))}
    steps = [{"scale_": {"target": "w", "by": 3}}, {"add": {"from_a": "w", "from_b": "w", "to": "w"}}]
    assert_as_run(here, tensors, steps)


def test_apply_gives_the_bits_of_run_across_blocks(here: Path):
    assert_as_run(here, {k: normal((3, 400_001), seed=s) for k, s in (("w", 1), ("v", 2))}, CHAIN[:4])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_apply_chooses_a_rank_from_values_as_run_does(here: Path, dtype: str):
    assert_as_run(here, {"w": normal((9, 6), jnp.dtype(dtype))}, LOW_RANK)


def test_an_untouched_leaf_comes_back_as_the_same_object():
    tree = {"a": jnp.ones(2), "b": np.ones(2), "c": jnp.ones(2)}
    out = plan({"scale_": {"target": "c", "by": 2}}).apply(tree)
    assert out["a"] is tree["a"] and out["b"] is tree["b"]


@pytest.mark.parametrize("dtype", COMPUTABLE, ids=str)
def test_an_untouched_leaf_of_any_dtype_can_be_renamed_as_it_is(dtype: Any):
    leaf = np.ones(2, np_dtype(dtype))
    assert plan({"move": {"from": "a", "to": "b"}}).apply({"a": leaf})["b"] is leaf


def test_computed_leaves_are_jax_arrays_whatever_came_in():
    out = plan({"scale_": {"target": "a", "by": 2}}).apply({"a": np.ones(2, np.float32)})
    assert isinstance(out["a"], jax.Array)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.complex128])
def test_a_64_bit_leaf_keeps_its_bits_while_x64_is_off(dtype: Any):
    leaf = (np.arange(3) + 2**40 + 1).astype(dtype)
    out = plan({"add": {"from_a": "a", "from_b": "a", "to": "a"}}).apply({"a": leaf})
    assert jnp.zeros(1).dtype == np.float32
    assert same(out["a"], leaf + leaf)


def test_inputs_are_never_changed_and_a_second_call_gives_the_same():
    tree = {"a": np.arange(4.0), "b": jnp.arange(4.0)}
    before = {k: np.array(v) for k, v in tree.items()}
    scaled = plan(
        {"scale_": {"target": "a::[1:3]", "by": 5}}, {"copy": {"from": "a", "to": "b.c"}}, {"delete": {"target": "b"}}
    )
    first, second = scaled.apply(tree), scaled.apply(tree)
    assert all(same(tree[k], before[k]) for k in tree) and list(tree) == ["a", "b"]
    assert same(first["b"]["c"], second["b"]["c"])


def test_a_copy_is_an_array_of_its_own_so_that_the_result_can_be_donated():
    out = plan({"copy": {"from": "a", "to": "b"}}).apply({"a": jnp.ones(3)})
    total = jax.jit(lambda t: {k: v + 1 for k, v in t.items()}, donate_argnums=0)(out)
    assert same(total["b"], np.full(3, 2, np.float32))


def test_a_numpy_copy_does_not_follow_later_writes_to_its_source():
    for size in (3, 64, 1000, 100_000):  # memory of some is aligned as XLA wants it
        leaf = np.ones(size, np.float32)
        out = plan({"copy": {"from": "a", "to": "b"}}).apply({"a": leaf})
        leaf[:] = 7
        assert same(out["b"], np.ones(size, np.float32))


def test_a_computed_leaf_stays_where_the_caller_put_the_old_one():
    device = jax.devices()[0]
    mesh = jax.sharding.Mesh([device], ("d",))
    placed = jax.device_put(jnp.ones(4), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
    out = plan({"scale_": {"target": "a", "by": 2}}).apply({"a": placed})
    assert out["a"].sharding == placed.sharding


def test_a_big_endian_leaf_is_computed_on_by_value():
    out = plan({"scale_": {"target": "a", "by": 2}}).apply({"a": np.arange(3, dtype=">f4")})
    assert same(out["a"], np.arange(3, dtype=np.float32) * 2)


def test_a_random_key_can_be_named_and_moved():
    out = plan({"move": {"from": "k", "to": "rng.k"}}).apply({"k": jax.random.key(3)})
    assert jax.random.key_data(out["rng"]["k"]).tolist() == [0, 3]


def test_an_input_that_is_not_given_is_read_from_its_path(here: Path):
    delta = normal((3,))
    file = write(here / "delta.safetensors", {"w": delta})
    steps = [{"add_": {"from": "delta::w", "to": "base::w"}}]
    both = bs.load({"inputs": ["base::nowhere", f"delta::{file}"], "transforms": steps})
    assert same(both.apply({"w": delta})["w"], delta + delta)


def test_constants_given_under_an_unrelated_trace_are_computed_at_once():
    doubled = plan({"scale_": {"target": "a", "by": 2}})

    @jax.jit
    def shifted(x: Any) -> Any:
        out = doubled.apply({"a": np.ones(2, np.float32)})["a"]
        assert np.asarray(out).tolist() == [2, 2]
        return out + x

    assert shifted(jnp.ones(2)).tolist() == [3, 3]


def test_outputs_and_saves_are_not_executed(here: Path):
    steps = [{"save": {"path": "saved.safetensors"}}, {"scale_": {"target": "w", "by": 2}}]
    loaded = bs.load({"inputs": ["m::nowhere"], "transforms": steps, "output": "out.safetensors"})
    loaded.apply({"w": np.ones(1)})
    assert list(here.iterdir()) == []


DUMPED = {"dump": {"target": "a", "verbosity": "full"}}, {"scale_": {"target": "a", "by": 2}}


def test_dump_hands_the_listener_what_the_tree_holds_at_its_place():
    reports: list[Document] = []
    plan(*DUMPED).apply({"a": np.ones(2)}, listen=reports.append)
    facts = {"shape": [2], "dtype": "float64", "values": [1.0, 1.0], "reads": 1, "writes": 1}
    assert reports == [Parts((NameTree("", (("a", facts),)),), space=1)]


def test_without_a_listener_reports_are_logged_and_nothing_goes_to_standard_output(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    plan(*DUMPED).apply({"a": np.ones(2)})
    ((logger, _, text),) = caplog.record_tuples
    assert logger == "brainsurgery_jax"
    assert "values=[1.0, 1.0]" in text
    assert capsys.readouterr().out == ""


def plan(*steps: Any, **keys: Any) -> bs.Plan:
    return bs.load({"inputs": ["model::given-as-a-tree"], "transforms": list(steps), **keys})


def test_a_leaf_of_the_structure_that_is_kept_survives_donation():
    tree = {"a": jnp.ones(3), "b": jnp.zeros(3)}
    out = plan({"delete": {"target": "b"}}).apply(tree, like=tree, missing="keep", donate=True)
    assert same(out["b"], np.zeros(3, np.float32))


def test_a_leaf_that_the_host_reads_later_is_not_donated_to_what_a_device_computes_before():
    (device, *_), values = jax.devices(), np.arange(6, dtype=np.float32)
    pinned = jax.device_put(values, jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host"))
    steps = (
        {"add": {"from_a": "h", "from_b": "p", "to": "p"}},
        {"assert": {"finite": "p"}},
        {"scale_": {"target": "h", "by": 3}},
    )
    out = plan(*steps).apply({"h": jax.device_put(values.copy(), device), "p": pinned}, donate=True)
    assert np.array_equal(out["h"], 3 * values) and np.array_equal(out["p"], 2 * values)


def test_what_is_made_of_no_leaf_is_put_on_the_devices_of_the_tree():
    *_, last = jax.devices()
    tree = {"w": jax.device_put(np.ones(4, np.float32), last)}
    out = plan({"rand": {"target": "r", "shape": [4], "seed": 1}}).apply(tree)
    assert out["r"].sharding.device_set == {last}
    assert out["r"].committed


def test_a_wrong_word_is_refused_before_anything_is_donated():
    wrong: Any = "all"
    tree = {"a": jnp.ones(3)}
    with pytest.raises(ValueError, match="missing: expected"):
        plan({"scale_": {"target": "a", "by": 2}}).apply(tree, like=tree, missing=wrong, donate=True)
    assert not tree["a"].is_deleted()
