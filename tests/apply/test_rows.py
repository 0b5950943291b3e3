"""Every row of the table that computes or moves values, applied to a tree: under `jax.jit` as outside of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import brainsurgery_jax as bs
import brainsurgery_jax.ops
from brainsurgery_jax.op import OPS
from brainsurgery_jax.plan.pages import family
from tests.checkpoints import same
from tests.ops_table import ROWS, Row

FAMILIES = ("elementwise", "linalg", "reduce", "sets", "shape")
VALUES = [row for row in ROWS if not row.before and family(OPS[row.op]) in FAMILIES]


def after(row: Row) -> dict[str, np.ndarray]:
    return {name: x for name, x in (row.tensors | dict(row.changes(row.tensors))).items() if x is not None}


@pytest.mark.parametrize("row", VALUES, ids=str)
def test_a_step_does_to_a_traced_tree_what_it_does_to_a_checkpoint(row: Row) -> None:
    plan = bs.load({"inputs": ["model::given-as-a-tree"], "transforms": [{row.op: row.payload}]})
    tree: dict[str, Any] = dict(row.tensors)
    traced = jax.jit(partial(plan.apply, checks="skip"))(tree)
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
