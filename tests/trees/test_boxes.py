"""A leaf of a Flax variable has one name, in memory and in a file that orbax wrote: without the key `value` of the
variable. What a plan writes has that key where its input had it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import brainsurgery_jax as bs
from brainsurgery_jax.apply.names import name_leaves
from tests.trees.judge import VERSIONS, assert_same, restore, save, tree_of


class Net(nnx.Module):
    """A module with a stream of random numbers, whose layer is called as it is told."""

    def __init__(self, name: str = "a"):
        setattr(self, name, nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        self.drop = nnx.Dropout(0.1, rngs=nnx.Rngs(1))


def run(source: Path, target: Path, *steps: Any, version: str = "v0") -> None:
    output = {"path": f"{target}/", "format": "orbax", "options": {"version": version}}
    bs.load({"inputs": [f"m::{source}"], "transforms": list(steps), "output": output}).run(durable=False)


def doubled(state: Any, part: str) -> Any:
    return jax.tree_util.tree_map_with_path(lambda p, x: x * 2 if part in jax.tree_util.keystr(p) else x, state)


def test_names_in_a_file_are_those_in_memory(tmp_path: Path):
    state = nnx.state(Net())
    assert {*bs.open(str(save(tmp_path / "in", state)))} == {*name_leaves("m", state).names}


@pytest.mark.parametrize("middle", ["", "m.npz", "m.safetensors"])
@pytest.mark.parametrize("version", VERSIONS)
def test_one_plan_works_on_a_file_and_in_memory(version: str, middle: str, tmp_path: Path):
    steps = [{"scale_": {"target": r"a\.kernel", "by": 2}}, {"move": {"from": r"a\.(.*)", "to": r"b.\1"}}]
    source = save(tmp_path / "in", nnx.state(Net()))
    if middle:
        bs.load({"inputs": [f"m::{source}"], "output": str(tmp_path / middle)}).run(durable=False)
        source = tmp_path / middle
    run(source, tmp_path / "out", *steps, version=version)
    wanted = doubled(nnx.state(Net("b")), "kernel")
    assert_same(restore(tmp_path / "out", version, wanted), wanted)
    applied = bs.load({"transforms": steps}).apply(nnx.state(Net()), like=nnx.state(Net("b")))
    assert_same(applied, wanted)


def test_a_state_of_training_keeps_both_kinds_of_leaves(tmp_path: Path):
    params = nnx.state(Net(), nnx.Param)
    state = {
        "params": params,
        "opt": optax.adam(1e-2).init(params),
        "scale": {"value": jnp.ones(2), "other": jnp.ones(1)},
    }
    source = save(tmp_path / "in", state)
    found = {*bs.open(str(source))}
    assert {"params.a.kernel", "opt.0.mu.a.bias", "opt.0.count", "scale.value", "scale.other"} <= found
    run(source, tmp_path / "out", {"scale_": {"target": r"opt\.0\.mu\..*", "by": 2}})
    assert tree_of(tmp_path / "out") == tree_of(source)
    assert_same(restore(tmp_path / "out", "v0", state), doubled(state, ".mu"))


def test_a_plain_dict_with_that_key_alone_comes_back(tmp_path: Path):
    tree = {"rate": {"value": jnp.full(2, 3.0)}, "w": jnp.ones(2)}
    run(save(tmp_path / "in", tree), tmp_path / "out", {"move": {"from": "rate", "to": "speed"}})
    assert_same(restore(tmp_path / "out", "v0"), {"speed": tree["rate"], "w": tree["w"]})


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_written_under_such_a_name_is_read_under_it(version: str, tmp_path: Path):
    arrays: dict[str, Any] = {"a.kernel.value": np.ones(2), "b.value": np.ones(3)}
    np.savez(tmp_path / "in.npz", **arrays)
    run(tmp_path / "in.npz", tmp_path / "out", version=version)
    assert {*bs.open(str(tmp_path / "out"))} == {"a.kernel.value", "b.value"}


@pytest.mark.parametrize(("named", "meant"), [(r".*\.value", ".*"), (r"(a|b)\.kernel\.value", r"(a|b)\.kernel")])
def test_a_pattern_with_the_key_is_told_to_leave_it_out(named: str, meant: str, tmp_path: Path):
    source = save(tmp_path / "in", nnx.state(Net(), nnx.Param))
    with pytest.raises(bs.PlanError, match="no tensor matches") as caught:
        run(source, tmp_path / "out", {"scale_": {"target": named, "by": 2}})
    hint = caught.value.diagnostics[0].hint
    assert hint == "Names leave out the key that variables of Flax add at the end, '.value': leave it out here, too."
    assert meant == re.sub(r"\\\.value$", "", named)
    run(source, tmp_path / "out", {"scale_": {"target": meant, "by": 2}})
    assert (tmp_path / "out").exists()
