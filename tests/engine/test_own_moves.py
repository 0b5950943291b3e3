"""Moves that a plugin defines stream as ours do: the same boxes, the same sweeps, the same bytes read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.engine.plan.segments import mixes, tiles
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.index.boxes import Box, box_shape, whole
from brainsurgery_jax.index.moves import Axes, Concat, Moves, Part, Permute, Run, Slice, Update
from brainsurgery_jax.op import OPS, Form, kernel, op
from brainsurgery_jax.ops.shape import concatenate, permute
from brainsurgery_jax.select import Index
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, plan_of, read, same


@dataclass(frozen=True, slots=True)
class Turned(Moves):
    """A matrix by its columns, as a plugin would write it."""

    def aval(self, avals: tuple[Aval, ...]) -> Aval:
        return Aval(avals[0].shape[::-1], avals[0].dtype)

    def runs(self, avals: tuple[Aval, ...], start: int, stop: int) -> list[Run] | None:
        return None

    def parts(self, avals: tuple[Aval, ...], box: Box) -> list[Part]:
        return [Part(0, box[::-1], whole(box_shape(box)))]

    def arrange(self, piece: np.ndarray, part: Part) -> np.ndarray:
        return piece.T

    def axes(self, avals: tuple[Aval, ...]) -> tuple[Axes, ...]:
        return ((1, 0),)


@kernel(moves=lambda avals, params: Turned())
def turn(x: Any) -> Any:
    """`x.T`."""
    return x.T


@pytest.fixture
def turn_op() -> Iterator[None]:
    """The op `own_turn`, for one test."""

    @op(Form("own_turn", ("from",), ("to",), "new", slices=frozenset({"from"})), moves=lambda avals, params: Turned())
    def own_turn(x: Any) -> Any:
        """Turn a matrix."""
        return x.T

    yield
    del OPS["own_turn"]


def stack(graph: Graph, own: bool) -> Expr:
    """Three turned matrices, one after another."""
    leaves = [graph.placeholder("model", f"w{i}", Aval((6, 4), FLOAT32)) for i in range(3)]
    turned = [graph.call(turn, (x,), {}) if own else graph.call(permute, (x,), {"order": (1, 0)}) for x in leaves]
    return graph.call(concatenate, tuple(turned), {"axis": 0})


def test_own_moves_are_made_in_the_boxes_in_which_ours_are() -> None:
    own, ours = stack(Graph(), own=True), stack(Graph(), own=False)
    assert mixes(own) and mixes(ours)
    assert list(tiles(own)) == list(tiles(ours)) == [((i, i + 4, 1), (0, 6, 1)) for i in (0, 4, 8)]


def test_columns_through_own_moves_read_their_matrix_once(tmp_path: Path, turn_op: None) -> None:
    w = normal((60, 300))
    steps = [{"own_turn": {"from": f"w::[:, {k}:{k + 1}]", "to": f"c.{k}"}} for k in range(0, 300, 3)]
    plan, world = plan_of(tmp_path, {"w": w}, [*steps, {"delete": {"target": "w"}}]), Files()
    bs.load(plan).run(durable=False, world=world)
    out = read(plan["output"]["path"])
    assert all(same(out[f"c.{k}"], w[:, k : k + 1].T) for k in range(0, 300, 3))
    assert world.bytes_read == w.nbytes


# --- Facts of our own moves ------------------------------------------------------------------------------------------

X = Aval((4, 6, 1), FLOAT32)
V = Aval((2, 6, 1), FLOAT32)
PART = Index((1, 0, 0), (3, 6, 1), (1, 1, 1), (), X.shape)
MOVES: list[tuple[Moves, tuple[Aval, ...]]] = [
    (Permute((1, 0, 2)), (X,)),
    (Permute((2, 0, 1)), (X,)),
    (Slice(PART), (X,)),
    (Concat(0), (X, V)),
    (Update(PART), (X, V)),
]


@pytest.mark.parametrize(("moves", "avals"), MOVES, ids=lambda m: type(m).__name__)
def test_a_box_along_an_axis_that_is_found_needs_that_box_of_the_operand_alone(
    moves: Moves, avals: tuple[Aval, ...]
) -> None:
    result = moves.aval(avals)
    for src, axes in enumerate(moves.axes(avals)):
        for axis, at in enumerate(axes):
            for row in range(result.shape[at]) if at is not None else ():
                box = tuple((row, row + 1, 1) if a == at else (0, n, 1) for a, n in enumerate(result.shape))
                needed = [part.box[axis] for part in moves.parts(avals, box) if part.src == src]
                assert all(span == (row, row + 1, 1) for span in needed)


@pytest.mark.parametrize(("moves", "mixed"), [(Permute((1, 0, 2)), True), (Permute((2, 0, 1)), False)])
def test_axes_of_one_element_come_and_go_without_being_mixed(moves: Permute, mixed: bool) -> None:
    assert moves.mixes((X,)) is mixed
