"""Steps over every leaf of a tree that holds random keys, packed floats and counters beside its weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
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


NARROW = (
    "int4", "uint4", "int2", "uint2", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e8m0fnu",
    "float6_e2m3fn", "float4_e2m1fn",
)  # fmt: skip


@pytest.mark.parametrize("name", NARROW)
def test_narrow_arrays_of_numpy_are_renamed_as_all_others(name: str) -> None:
    came = np.array([1, 0, 1, 1], np.float32).astype(getattr(ml_dtypes, name))
    moved = bs.load({"transforms": [{"move": {"from": r"m\.(.+)", "to": r"q.\1"}}]})
    found = moved.apply({"m": {"w": came, "b": W}})
    assert found["q"]["w"] is came


def test_narrow_arrays_of_numpy_are_deleted_as_all_others() -> None:
    deleted = bs.load({"transforms": [{"delete": {"target": "w"}}]})
    assert list(deleted.apply({"w": np.zeros(2, ml_dtypes.int4), "b": W})) == ["b"]


@pytest.mark.parametrize("name", ["int4", "uint2", "float8_e3m4"])
def test_one_narrow_number_of_numpy_is_saved_as_what_apply_takes_it_for(tmp_path: Path, name: str) -> None:
    number = getattr(ml_dtypes, name)(1)
    assert list(bs.load({"transforms": []}).apply({"x": number})) == ["x"]
    bs.save(tmp_path / "one.npz", {"x": number}, durable=False)
    assert bs.open(tmp_path / "one.npz")["x"].item() == 1


@pytest.mark.parametrize("trace", [lambda f: f, jax.jit])
@pytest.mark.parametrize("name", ["int4", "uint2", "float8_e4m3b11fnuz"])
@pytest.mark.parametrize(
    "step",
    [
        {"cast_": {"target": "w", "to": "float32"}},
        {"compute": {"from": {"w": "w"}, "expr": "float32(w)", "dtype": "float32"}},
    ],
)
def test_a_narrow_leaf_that_is_widened_as_the_hint_says_is_computed_on(step: Any, name: str, trace: Any) -> None:
    narrow, plan = jnp.ones(3, name), bs.load({"transforms": [step]})
    with pytest.raises(bs.PlanError) as caught:
        trace(plan.apply)({"w": narrow})
    (found,) = caught.value.diagnostics
    (wide,) = re.findall(r"`leaf\.astype\('(\w+)'\)`", found.hint)
    assert trace(plan.apply)({"w": narrow.astype(wide)})["w"].tolist() == [1, 1, 1]
