"""Every row of the table that computes or moves values, applied to a tree: under `jax.jit` as outside of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs
import brainsurgery_jax.ops
from brainsurgery_jax.op import OPS
from brainsurgery_jax.plan.pages import family
from tests.checkpoints import same
from tests.ops_table import ROWS, Row

FAMILIES = ("elementwise", "linalg", "quantize", "reduce", "sets", "shape")
VALUES = [row for row in ROWS if not row.before and family(OPS[row.op]) in FAMILIES]


def after(row: Row) -> dict[str, np.ndarray]:
    return {name: x for name, x in (row.tensors | dict(row.changes(row.tensors))).items() if x is not None}


@pytest.mark.parametrize("row", VALUES, ids=str)
def test_a_step_does_to_a_traced_tree_what_it_does_to_a_checkpoint(row: Row) -> None:
    plan = bs.load({"inputs": ["model::given-as-a-tree"], "transforms": [{row.op: row.payload}]})
    tree: dict[str, Any] = dict(row.tensors)
    # What values of a whole kind are refused for is another matter (`test_modes.py`).
    traced = jax.jit(lambda tree: plan.apply(tree, checks="skip"))(tree)
    wanted = after(row)
    assert set(traced) == set(wanted)
    for name, x in wanted.items():
        assert same(traced[name], x) or np.allclose(traced[name], x, rtol=1e-6), name


@pytest.mark.parametrize("row", VALUES, ids=str)
def test_shapes_are_known_without_values(row: Row) -> None:
    plan = bs.load({"inputs": ["model::given-as-a-tree"], "transforms": [{row.op: row.payload}]})
    abstract = plan.apply({name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in row.tensors.items()})
    assert {name: (s.shape, s.dtype) for name, s in abstract.items()} == {
        name: (x.shape, x.dtype) for name, x in after(row).items()
    }


def test_gradients_flow_through_quotients_interpolations_and_means() -> None:
    plan = bs.load(
        {
            "inputs": ["model::given-as-a-tree"],
            "transforms": [
                {"divide_": {"from": "y", "to": "x"}},
                {"lerp_": {"from": "y", "to": "x", "t": 0.25}},
                {"reduce": {"from": "x", "to": "mean", "mode": "mean"}},
            ],
        }
    )
    gradient = jax.grad(lambda tree: plan.apply(tree)["mean"])({"x": jnp.ones(4), "y": jnp.full(4, 2.0)})
    assert gradient["x"].tolist() == [0.75 / 2 / 4] * 4
    assert gradient["y"].tolist() == [(0.25 - 0.75 / 4) / 4] * 4


def test_gradients_flow_through_what_is_taken_stacked_and_contracted() -> None:
    plan = bs.load(
        {
            "inputs": ["model::given-as-a-tree"],
            "transforms": [
                {"take_": {"target": "a", "indices": [1, 1]}},
                {"stack": {"from": ["a", "b"], "to": "s"}},
                {"einsum": {"from_a": "s", "equation": "ij->", "to": "sum"}},
            ],
        }
    )
    gradient = jax.grad(lambda tree: plan.apply(tree)["sum"])({"a": jnp.ones(3), "b": jnp.ones(2)})
    assert (gradient["a"].tolist(), gradient["b"].tolist()) == ([0, 2, 0], [1, 1])
