"""Chains of moves: each tensor of a chain takes one move of its source, whatever the length of the chain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.engine.plan.schedule import Written, roots_of
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.index.composing import compose_moves
from brainsurgery_jax.index.moves import Moves, Permute, Reshape, Slice
from brainsurgery_jax.index.take import Take
from brainsurgery_jax.select import parse_slice, resolve
from tests.null.world import Headers, program

SHAPE = (3, 4, 5)
CHAIN = 200


def roots(*steps: object, tensors: dict[str, str]) -> dict[str, Expr]:
    lowered = program(*steps, output="out.safetensors", world=Headers({"m.safetensors": tensors}))
    assert not lowered.errors
    return {root.name: root.expr for root in roots_of(lowered) if isinstance(root, Written)}


def nodes(exprs: dict[str, Expr]) -> int:
    """Nodes that are visited where each tensor is planned by itself."""
    return sum(len(list(walk([e]))) for e in exprs.values())


@pytest.mark.parametrize(
    "step",
    [
        {"permute": {"order": [1, 2, 0]}},
        {"transpose": {}},
        {"take": {"dim": 0, "indices": [2, 1, 0]}},
    ],
)
def test_each_tensor_of_a_long_chain_is_one_move_of_the_source(step: dict[str, dict[str, object]]):
    ((op, keys),) = step.items()
    steps = [{op: {"from": f"w{n}", "to": f"w{n + 1}", **keys}} for n in range(CHAIN)]
    assert nodes(roots(*steps, tensors={"w0": "f32[3,3,3]"})) <= 2 * (CHAIN + 1)


def test_a_chain_that_ends_where_it_began_is_the_source():
    steps = [{"transpose": {"from": f"w{n}", "to": f"w{n + 1}"}} for n in range(2)]
    found = roots(*steps, tensors={"w0": "f32[3,4]"})
    assert found["w2"] is found["w0"] and found["w2"].is_leaf


def test_a_tensor_that_an_assert_is_about_is_left_as_it_is():
    steps = [{"transpose": {"from": f"w{n}", "to": f"w{n + 1}"}} for n in range(3)]
    asked = {"assert": {"finite": "w3"}}
    assert len(list(walk([roots(*steps, asked, tensors={"w0": "f32[3,4]"})["w3"]]))) == 4


@st.composite
def a_move(draw: st.DrawFn, shape: tuple[int, ...]) -> Moves:
    """Any of the moves that are composed, of a tensor of this shape."""
    kind = draw(st.sampled_from(["permute", "reshape", "slice", "take"]))
    if kind == "permute" or not shape:
        return Permute(tuple(draw(st.permutations(range(len(shape))))))
    if kind == "reshape":
        return Reshape(tuple(draw(st.permutations(shape))))
    if kind == "take" and shape[0]:
        return Take(0, tuple(draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=4))))
    texts = ["::2", "1:", ":", ":-1", "1:2", "5:"] + (["0", "-1"] if min(shape) else [])
    parts = draw(st.lists(st.sampled_from(texts), min_size=len(shape), max_size=len(shape)))
    return Slice(resolve(parse_slice(f"[{', '.join(parts)}]"), shape))


def perform(moves: Moves, x: np.ndarray) -> np.ndarray:
    """What numpy makes of an array."""
    match moves:
        case Permute(order):
            return x.transpose(order)
        case Reshape(shape):
            return x.reshape(shape)
        case Slice(index):
            return x[index.key]
        case Take(axis, entries):
            return x.take(list(entries), axis)
    raise AssertionError(moves)


@given(st.data())
def test_composed_moves_make_what_both_make_one_after_the_other(data: st.DataObject):
    first = data.draw(a_move(SHAPE))
    x = np.arange(60).reshape(SHAPE)
    between = perform(first, x)
    then = data.draw(a_move(between.shape))
    if (both := compose_moves(first, then)) is not None:
        np.testing.assert_array_equal(perform(both, x), perform(then, between))
        assert both.aval((Aval(SHAPE, BY_NAME["int64"]),)).shape == perform(both, x).shape
