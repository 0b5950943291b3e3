"""Steps over every leaf of a tree that holds random keys, packed floats and counters beside its weights."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs

W = np.array([[1.0, -2.0]], np.float32)


def scaled(target: Any, tree: dict[str, Any]) -> dict[str, Any]:
    return dict(bs.load({"transforms": [{"scale_": {"target": target, "by": 0.5}}]}).apply(tree))


def refused(tree: dict[str, Any]) -> str:
    """The hint where everything is scaled."""
    with pytest.raises(bs.PlanError) as caught:
        scaled(".*", tree)
    (found,) = caught.value.diagnostics
    assert found.code == "dtype-opaque"
    return found.hint


def test_beside_random_keys_the_hint_takes_the_weights_and_nothing_else() -> None:
    tree = {"key": jax.random.key(0), "count": jnp.asarray(3, jnp.uint32), "w": jnp.asarray(W)}
    (kind,) = re.findall(r"Write `\{name: '\.\*', kind: (\w+)\}` for `target`", refused(tree))
    found = scaled({"name": ".*", "kind": kind}, tree)
    assert (found["count"].item(), found["w"].tolist()) == (3, (W / 2).tolist())
    assert bool(jax.random.key_data(found["key"]).tolist() == jax.random.key_data(tree["key"]).tolist())


def test_beside_packed_floats_no_kind_tells_the_weights_apart() -> None:
    tree = {"packed": jnp.ones(2, jnp.float4_e2m1fn), "count": jnp.asarray(3, jnp.uint32), "w": jnp.asarray(W)}
    assert refused(tree) == "Narrow the pattern, so that it leaves such tensors out."
    assert scaled("w", tree)["w"].tolist() == (W / 2).tolist()


def test_random_keys_are_of_kind_other() -> None:
    tree = {"key": jax.random.key(0), "w": jnp.asarray(W)}
    plan = bs.load({"transforms": [{"delete": {"target": {"name": ".*", "kind": "other"}}}]})
    assert list(plan.apply(tree)) == ["w"]
