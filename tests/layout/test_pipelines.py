"""Random chains of ops: what they make is what numpy makes, and the way back is the identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.layout.actions import Action, Chain
from brainsurgery_jax.layout.families import LIST, Axis, OpContext, TensorFamily
from brainsurgery_jax.layout.ops import read_op

Made = tuple[Any, Callable[[list[np.ndarray]], list[np.ndarray]]]
"""An op as a layout writes it, and what numpy does instead."""


class Numpy:
    """numpy arrays, as the actions use them."""

    def permute(self, x: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
        return x.transpose(order)

    def reshape(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x.reshape(shape)

    def join(self, xs: Sequence[np.ndarray], axis: int) -> np.ndarray:
        return np.concatenate(xs, axis)

    def cut(self, x: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
        return x[(slice(None),) * axis + (slice(start, stop),)]

    def extend(self, x: np.ndarray, axis: int, size: int) -> np.ndarray:
        return np.pad(x, [(0, size - n if a == axis else 0) for a, n in enumerate(x.shape)])

    def multiply(self, x: np.ndarray, by: float) -> np.ndarray:
        return x * by

    def add(self, x: np.ndarray, number: float) -> np.ndarray:
        return x + number


def interleaved(x: np.ndarray, axis: int) -> np.ndarray:
    out, (first, second) = np.empty_like(x), np.split(x, 2, axis)
    ahead = (slice(None),) * axis
    out[(*ahead, slice(0, None, 2))], out[(*ahead, slice(1, None, 2))] = first, second
    return out


def split(n: int) -> list[int]:
    return [f for f in range(1, n + 1) if n % f == 0]


@st.composite
def member_ops(draw: st.DrawFn, shape: tuple[int, ...]) -> Made:
    """An op on every member of a family of that shape."""
    rank = len(shape)
    kinds = ["permute", "reshape", "add", "multiply", "pad", *(["transpose"] if rank > 1 else [])]
    even = [a for a in range(rank) if shape[a] % 2 == 0]
    kind = draw(st.sampled_from([*kinds, *(["interleave"] if even else [])]))
    if kind == "permute":
        order = draw(st.permutations(range(rank)))
        return {"permute": order}, lambda xs: [x.transpose(order) for x in xs]
    if kind == "reshape":
        first = draw(st.sampled_from(split(prod(shape))))
        new = [first, prod(shape) // first]
        return {"reshape": new}, lambda xs: [x.reshape(new) for x in xs]
    if kind == "pad":
        axis = draw(st.integers(0, rank - 1))
        more = [(0, 2 if a == axis else 0) for a in range(rank)]
        return {"pad": {"axis": axis, "to": shape[axis] + 2}}, lambda xs: [np.pad(x, more) for x in xs]
    if kind == "interleave":
        axis = draw(st.sampled_from(even))
        return {"interleave": axis}, lambda xs: [interleaved(x, axis) for x in xs]
    if kind == "transpose":
        return "transpose", lambda xs: [x.swapaxes(-1, -2) for x in xs]
    number = draw(st.sampled_from([1, 3]) if kind == "add" else st.sampled_from([2, 4]))
    return {kind: number}, (lambda xs: [x + number for x in xs]) if kind == "add" else (
        lambda xs: [x * number for x in xs]
    )


@st.composite
def joins(draw: st.DrawFn, rank: int) -> Made:
    if draw(st.booleans()):
        axis = draw(st.integers(0, rank))
        return {"stack": {"axis": axis}}, lambda xs: [np.stack(xs, axis)]
    axis = draw(st.integers(0, rank - 1))
    return {"concat": {"axis": axis}}, lambda xs: [np.concatenate(xs, axis)]


def bound(written: Any, family: TensorFamily, sizes: Mapping[str, int] | None = None) -> tuple[Action, TensorFamily]:
    use = read_op(written)
    return use.op.bind(use.args, OpContext(family, {}, sizes or {}))


@given(
    st.data(),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(2, 3),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_a_chain_of_ops_does_what_numpy_does_and_its_way_back_undoes_it(
    data: st.DataObject, shape: list[int], members: int, before: int, after: int
) -> None:
    xs = [np.arange(prod(shape)).reshape(shape) + 1000 * m for m in range(members)]
    family = TensorFamily((Axis(LIST, members),), (tuple(shape),) * members)
    wanted, actions = list(xs), []
    for step in range(before + 1 + after):
        rank = len(family.shapes[0])
        written, oracle = data.draw(joins(rank) if step == before else member_ops(family.shapes[0]))
        action, family = bound(written, family)
        actions.append(action)
        wanted = oracle(wanted)
    chain = Chain(tuple(actions))
    found = chain.forward(xs, Numpy())
    assert [f.shape for f in found] == list(family.shapes)
    assert all(map(np.array_equal, found, wanted))
    assert all(map(np.array_equal, chain.inverse(found, Numpy()), xs))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3))
def test_a_split_into_sizes_is_undone_by_joining(sizes: list[int], width: int) -> None:
    x = np.arange(sum(sizes) * width).reshape(sum(sizes), width)
    action, family = bound({"split": {"axis": 0, "sizes": sizes}}, TensorFamily((), (x.shape,)), {LIST: len(sizes)})
    parts = action.forward([x], Numpy())
    assert [p.shape for p in parts] == list(family.shapes)
    assert all(map(np.array_equal, parts, np.split(x, np.cumsum(sizes)[:-1])))
    assert np.array_equal(action.inverse(parts, Numpy())[0], x)


def test_unstack_gives_the_entries_of_an_axis() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    action, family = bound({"unstack": {"axis": 1}}, TensorFamily((), (x.shape,)), {LIST: 3})
    parts = action.forward([x], Numpy())
    assert family.shapes == ((2, 4),) * 3
    assert all(np.array_equal(parts[i], x[:, i]) for i in range(3))
    assert np.array_equal(action.inverse(parts, Numpy())[0], x)


def test_experts_stacked_inside_layers_come_apart_again() -> None:
    family = TensorFamily((Axis("i", 2), Axis("e", 3)), ((4,),) * 6)
    xs = [np.arange(4) + 10 * m for m in range(6)]
    experts, family = bound({"stack": {"over": "e", "axis": 0}}, family)
    layers, family = bound({"stack": {"over": "i", "axis": 1}}, family)
    chain = Chain((experts, layers))
    (made,) = chain.forward(xs, Numpy())
    assert made.shape == family.shapes[0] == (3, 2, 4)
    assert np.array_equal(made, np.stack(xs).reshape(2, 3, 4).transpose(1, 0, 2))
    assert all(map(np.array_equal, chain.inverse([made], Numpy()), xs))


def test_each_member_of_a_list_may_have_ops_of_its_own() -> None:
    family = TensorFamily((Axis(LIST, 2),), ((4, 3), (2, 3)))
    action, family = bound({"each": [[{"reshape": [2, 2, 3]}], [{"reshape": [1, 2, 3]}]]}, family)
    assert family.shapes == ((2, 2, 3), (1, 2, 3))
    xs = [np.arange(12).reshape(4, 3), np.arange(6).reshape(2, 3)]
    assert all(map(np.array_equal, action.inverse(action.forward(xs, Numpy()), Numpy()), xs))


def test_cut_forgets_what_lies_beyond() -> None:
    x = np.arange(1, 7)
    action, family = bound({"cut": {"axis": 0, "to": 4}}, TensorFamily((), (x.shape,)))
    assert family.shapes == ((4,),)
    (kept,) = action.forward([x], Numpy())
    assert action.inverse([kept], Numpy())[0].tolist() == [1, 2, 3, 4, 0, 0]
