"""What becomes of a tree when names change, from headers alone."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from brainsurgery_jax.store.key_paths import BoxKey, ListIndex, TupleIndex
from brainsurgery_jax.store.key_tree import follow
from tests.trees.test_law import equal, written

L, T = ListIndex, TupleIndex
W = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        (("params", "layers", L(0), "w"), "model.layers.0.w", ("model", "layers", L(0), "w")),
        (("layers", L(1), "w"), "layers.2.w", ("layers", L(2), "w")),
        (("opt", T(0), "mu", "w"), "optimizer.0.mu.w", ("optimizer", T(0), "mu", "w")),
        (("opt", T(0), "mu", "w"), "mu.w", ("mu", "w")),
        (("encoder", "blocks", L(3), "attn", "w"), "enc.layers.3.att.w", ("enc", "layers", L(3), "att", "w")),
        (("h", L(3), "w"), "h_3.w", ("h_3", "w")),
        (("a.b", "c"), "x.a.b.c", ("x", "a.b", "c")),
        (("a", "kernel", BoxKey("value")), "b.kernel", ("b", "kernel", BoxKey("value"))),
        (("n", 3, "w"), "m.4.w", ("m", 4, "w")),
        ((L(0), "w"), "0.w", (L(0), "w")),
        (("a",), "b", ("b",)),
    ],
)
def test_keys_keep_their_kind(path: Any, name: str, expected: Any) -> None:
    found = follow(path, name)
    assert [(type(key), key) for key in found] == [(type(key), key) for key in expected]


def test_a_layer_is_inserted_in_a_list() -> None:
    steps = [
        {"move": {"from": r"m::layers\.1\.(.*)", "to": r"m::layers.2.\1"}},
        {"copy": {"from": r"m::layers\.0\.(.*)", "to": r"m::layers.1.\1"}},
    ]
    assert equal(written(steps, m={"layers": [{"w": W}, {"w": W}]}), {"layers": [{"w": W}] * 3})


def test_a_number_in_a_new_name_is_a_place_in_a_list_that_is_there() -> None:
    copy = {"copy": {"from": r"m::extra", "to": r"m::layers.1"}}
    assert equal(written([copy], m={"layers": [W], "extra": W}), {"layers": [W, W], "extra": W})


def test_a_list_that_misses_a_number_is_a_dict() -> None:
    delete = {"delete": {"target": r"m::layers\.1"}}
    assert equal(written([delete], m={"layers": [W, W, W]}), {"layers": {"0": W, "2": W}})


def test_the_moments_can_be_moved_out_of_a_state() -> None:
    state = {"opt": ({"mu": {"w": W}, "nu": {"w": W}}, None, {}), "none": None}
    move = {"move": {"from": r"m::opt\.0\.(mu|nu)\.(.*)", "to": r"m::\1.\2"}}
    assert equal(written([move], m=state), {"mu": {"w": W}, "nu": {"w": W}, "none": None})


def test_empty_leaves_of_a_list_that_lost_nothing_stay() -> None:
    state = {"opt": ({"mu": {"w": W}, "n": W}, None)}
    move = {"move": {"from": r"m::opt\.0\.mu\.(.*)", "to": r"m::mu.\1"}}
    assert equal(written([move], m=state), {"opt": ({"n": W}, None), "mu": {"w": W}})


MASKED = {"params": {"head": {"w": W, "b": W}, "body": {"w": W}}, "mu": {"head": None, "body": {"w": W}}}


def test_an_empty_container_is_renamed_with_others_of_its_name() -> None:
    move = {"move": {"from": r"m::(.*)\.head\.(.*)", "to": r"m::\1.tail.\2"}}
    expected = {"params": {"tail": {"w": W, "b": W}, "body": {"w": W}}, "mu": {"tail": None, "body": {"w": W}}}
    assert equal(written([move], m=MASKED), expected)


def test_an_empty_container_is_deleted_if_all_that_would_lie_in_it_is() -> None:
    whole, part = ({"delete": {"target": rf"m::.*\.head\.{inner}"}} for inner in (".*", "b"))
    assert written([whole], m=MASKED)["mu"].keys() == {"body"}
    assert written([part], m=MASKED)["mu"].keys() == {"head", "body"}


def test_a_place_in_a_tuple_is_matched_by_its_own_name_alone() -> None:
    tree = {"layers": [{"w": W}, {"w": W}], "opt": (None, {"w": W})}
    delete = {"delete": {"target": r"m::.*\.0\.w"}}
    assert equal(written([delete], m=tree)["opt"], (None, {"w": W}))


def test_a_tensor_takes_the_place_of_an_empty_leaf() -> None:
    tree = {"a": None, "b": {}, "w": W}
    steps = [{"copy": {"from": "m::w", "to": "m::a"}}, {"copy": {"from": "m::w", "to": "m::b.inner"}}]
    assert equal(written(steps, m=tree), {"a": W, "b": {"inner": W}, "w": W})


def test_a_copy_does_not_put_none_where_something_is() -> None:
    copy = {"copy": {"from": r"n::(x|y)", "to": r"m::\1"}}
    assert equal(written([copy], m={"y": {"w": W}}, n={"x": W, "y": None}), {"y": {"w": W}, "x": W})


def test_only_leaves_without_a_tensor_may_be_deleted_and_moved() -> None:
    steps = [{"delete": {"target": "m::a"}}, {"move": {"from": "m::b", "to": "m::c"}}]
    assert equal(written(steps, m={"a": None, "b": (), "w": W}), {"c": (), "w": W})


def test_computing_on_a_leaf_without_a_tensor_is_refused() -> None:
    with pytest.raises(AssertionError, match="no-match"):
        written([{"scale_": {"target": "m::a", "by": 2}}], m={"a": None, "w": W})


def test_what_an_op_makes_under_a_new_name_lies_as_its_source() -> None:
    scale = {"scale": {"from": r"m::params\.(.*)", "to": r"m::scaled.\1", "by": 2}}
    bs_tree = {"params": [{"w": W, "none": None}]}
    with_none = written([scale], m=bs_tree)
    assert isinstance(with_none["scaled"], list)
    assert with_none["scaled"][0]["none"] is None


def test_layers_are_stacked_beside_the_empty_leaves_of_the_first() -> None:
    tree = {"layers": [{"w": jnp.ones(2)}, {"w": jnp.ones(2)}], "e": None}
    steps = [
        {"stack": {"from": r"m::layers\.(?P<i>\d+)\.w", "to": "m::stacked.w", "over": "i"}},
        {"delete": {"target": r"m::layers\..*"}},
    ]
    assert written(steps, m=tree).keys() == {"stacked", "e"}
