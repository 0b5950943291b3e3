"""Classes of all kinds in a tree: what we save of them, and write of a checkpoint of them, is what orbax saves."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx, struct

import brainsurgery_jax as bs
from brainsurgery_jax.store.orbax import encode
from tests.trees.judge import VERSIONS, assert_same, restore, save, tree_of


@struct.dataclass
class Struct:
    """A dataclass of Flax, with a field that is no leaf."""

    a: Any
    b: Any = None
    c: str = struct.field(pytree_node=False, default="x")


class Nameless:
    """A class that names no keys."""

    def __init__(self, *children: Any):
        self.children = children


jax.tree_util.register_pytree_node(Nameless, lambda node: (node.children, None), lambda _, inner: Nameless(*inner))


def normalized() -> nnx.State:
    """Parameters and statistics, in a list of modules."""
    return nnx.state(nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0))))


def optimizer() -> nnx.State:
    """An optimizer of NNX."""
    return nnx.state(nnx.Optimizer(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.adamw(1e-3), wrt=nnx.Param))


W = jnp.ones(2)
TREES = {
    "FrozenDict": flax.core.FrozenDict({"p": {"w": W}, "e": flax.core.FrozenDict({})}),
    "Partitioned": {"p": nn.Partitioned(W, names=("x",)), "q": nn.LogicallyPartitioned(W, names=("x",))},
    "dataclass": Struct(W, Struct(W, None)),
    "OrderedDict": OrderedDict(z=W, a=OrderedDict()),
    "nameless": {"r": Nameless(W, W), "empty": Nameless()},
    "integer keys": {3: W, 10: {1: W}},
    "list at the top": [W, {"a": W}],
    "NNX modules": normalized(),
    "NNX optimizer": optimizer(),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", TREES)
def test_a_tree_is_saved_and_written_as_orbax_saves_it(kind: str, version: str, tmp_path: Path) -> None:
    tree = TREES[kind]
    own, out, through = (tmp_path / name for name in ("own", "out", "through"))
    expected = tree_of(save(own, tree, version))
    bs.save(f"{out}/", tree, format="orbax", options={"version": version}, durable=False)
    output = {"path": f"{through}/", "format": "orbax", "options": {"version": version}}
    bs.load({"inputs": [f"m::{out}"], "output": output}).run(durable=False)
    assert tree_of(out) == tree_of(through) == expected
    for path in (out, through):
        assert_same(restore(path, version, tree), tree)


@pytest.mark.parametrize("options", [{"compression": True}, {"chunk": "1KB", "version": "v0"}])
def test_chunks_and_compression_change_nothing_of_a_tree(
    tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "GROUP", 50)  # bytes that orbax gets at a time
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    tree = {"params": params, "opt": optax.MultiSteps(optax.adamw(1e-3), 2).init(params), "key": jax.random.key(0)}
    bs.save(f"{tmp_path / 'out'}/", tree, format="orbax", options=options, durable=False)
    assert tree_of(tmp_path / "out") == tree_of(save(tmp_path / "own", tree))
    version = options.get("version", "v1")
    assert_same(restore(tmp_path / "out", version, tree), tree)
