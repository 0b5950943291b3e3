"""The `layout` op on trees in memory, concrete and under `jax.jit`."""

from __future__ import annotations

import jax
import numpy as np

import brainsurgery_jax as bs
from tests.layout.test_convert import LLAMA, llama

PLAN = {"transforms": [{"layout": {"name": "tunix-llama", "config": LLAMA}}]}


def test_a_layout_makes_the_targets_tree_of_arrays() -> None:
    tree = bs.load(PLAN).apply(llama())
    query = llama()["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(tree["layers.0.attn.q_proj.w"], query.T.reshape(6, 2, 4))


def test_a_layout_works_under_jit() -> None:
    plan = bs.load(PLAN)
    tree, traced = plan.apply(llama()), jax.jit(plan.apply)(llama())
    assert jax.tree.structure(tree) == jax.tree.structure(traced)
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, traced))
