"""Files of Equinox: written by `tree_serialise_leaves` and read, written by us and deserialised by it."""

from __future__ import annotations

import errno
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source


class Net(eqx.Module):
    mlp: eqx.nn.MLP
    scale: jax.Array
    rate: float
    steps: int
    name: str = eqx.field(static=True)


def net(seed: int = 0) -> Net:
    mlp = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(seed))
    return Net(mlp, jnp.full((3,), seed + 0.5, jnp.bfloat16), 0.25 + seed, 7 + seed, "net")


def names(model: Any) -> list[str]:
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    return [jax.tree_util.keystr(p, simple=True, separator=".") for p, leaf in leaves if eqx.is_array_like(leaf)]


def same(left: Any, right: Any) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(callable(a) or (type(a) is type(b) and np.array_equal(a, b)) for a, b in pairs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", net())
    return tmp_path / "model.eqx"


def test_leaves_are_called_by_their_numbers(path: Path):
    found = bs.open(str(path))
    leaves = [leaf for leaf in jax.tree.leaves(net()) if eqx.is_array_like(leaf)]
    assert [*found] == [str(number) for number in range(len(leaves))]
    assert all(np.array_equal(found[str(at)], leaf) for at, leaf in enumerate(leaves))
    assert found["4"].dtype == jnp.bfloat16


def test_a_file_beside_it_names_them(path: Path):
    Path(f"{path}.json").write_text(json.dumps(names(net())))
    found = bs.open(str(path))
    assert [*found] == names(net())
    assert np.array_equal(found["mlp.layers.0.weight"], net().mlp.layers[0].weight)


@pytest.mark.parametrize("between", [[], ["between.safetensors"], ["a.npz", "b.eqx"]])
def test_equinox_deserialises_what_we_write(path: Path, between: list[str]):
    Path(f"{path}.json").write_text(json.dumps(names(net())))
    steps: list[Any] = [{"scale_": {"target": r"mlp\..*", "by": 2}}]
    way = [str(path), *(str(path.parent / name) for name in between), out := str(path.parent / "last.eqx")]
    for source, target in pairwise(way):
        bs.load({"inputs": [source], "transforms": steps, "output": target}).run(durable=False)
        steps = []
        if target.endswith("b.eqx"):
            Path(f"{target}.json").write_text(json.dumps(names(net())))
    found = eqx.tree_deserialise_leaves(out, net(seed=1))
    double = eqx.tree_at(lambda m: [x for layer in m.layers for x in (layer.weight, layer.bias)], net().mlp,
                         replace_fn=lambda x: x * 2)  # fmt: skip
    assert same(found, eqx.tree_at(lambda m: m.mlp, net(), double))


def test_the_line_of_hyperparameters_is_kept(tmp_path: Path):
    with open(tmp_path / "a.eqx", "wb") as file:
        file.write((json.dumps({"width": 4}) + "\n").encode())
        eqx.tree_serialise_leaves(file, net())
    plan = {"inputs": [str(tmp_path / "a.eqx")], "transforms": [], "output": str(tmp_path / "b.eqx")}
    bs.load(plan).run(durable=False)
    with open(tmp_path / "b.eqx", "rb") as file:
        assert json.loads(file.readline()) == {"width": 4}
        assert same(eqx.tree_deserialise_leaves(file, net(seed=1)), net())


def test_an_unknown_order_is_refused_and_numbers_give_one(tmp_path: Path):
    np.savez(tmp_path / "a.npz", w=np.ones(3), b=np.zeros(2))
    plan: dict[str, Any] = {"inputs": [str(tmp_path / "a.npz")], "transforms": [], "output": str(tmp_path / "a.eqx")}
    (problem,) = bs.check(bs.load(plan))
    assert "their order is not known" in problem.message
    assert problem.hint == "Rename the tensors to `0`, `1`, `2` and so on, in the order of the leaves of the model."
    moves = [{"move": {"from": old, "to": new}} for old, new in (("w", "1"), ("b", "0"))]
    bs.load(plan | {"transforms": moves}).run(durable=False)
    found = eqx.tree_deserialise_leaves(tmp_path / "a.eqx", (np.ones(2), np.zeros(3)))
    assert [leaf.tolist() for leaf in found] == [[0, 0], [1, 1, 1]]


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '["x"]', '["x", "x"]'])
def test_a_file_of_names_that_does_not_fit_is_refused(path: Path, text: str):
    Path(f"{path}.json").write_text(text)
    with pytest.raises(StoreError, match=r"\n    Write the names of the leaves, one for each array, as"):
        open_source(str(path))
    Path(f"{path}.json").write_text(json.dumps(names(net())))
    open_source(str(path)).close()


def test_what_is_cut_off_is_refused(path: Path):
    whole = path.read_bytes()
    for end in (len(whole) - 1, 200, 100, 3):
        path.write_bytes(whole[:end])
        with pytest.raises(StoreError, match=r"cut off|damaged|neither an array"):
            open_source(str(path))


def test_an_order_that_names_a_leaf_twice_is_none(tmp_path: Path):
    tensors = {"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}
    bs.save(str(tmp_path / "m.safetensors"), tensors, metadata={"equinox.leaves": '["a", "a"]'})
    plan = {"inputs": [str(tmp_path / "m.safetensors")], "output": str(tmp_path / "m.eqx")}
    with pytest.raises(bs.PlanError, match="their order is not known"):
        bs.load(plan).run(durable=False)
    assert not (tmp_path / "m.eqx").exists()


def test_names_that_cannot_be_read_are_told_and_not_taken_for_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.eqx"
    eqx.tree_serialise_leaves(path, net())
    (tmp_path / "net.eqx.json").write_text(json.dumps(names(net())))
    stat = os.stat

    def failing(place: Any, **how: Any) -> os.stat_result:
        if str(place).endswith(".json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), place)
        return stat(place, **how)

    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(StoreError, match="could not read the names"):
        open_source(str(path))
