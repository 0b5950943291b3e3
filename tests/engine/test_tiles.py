"""Tensors whose axes are put in another order are made in boxes: each source is read once, none is held whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.engine.compute.order import TILE, in_order
from brainsurgery_jax.engine.plan import segments
from brainsurgery_jax.engine.plan.segments import mixes
from brainsurgery_jax.engine.run.perform import rows
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.index.boxes import box_shape, whole
from brainsurgery_jax.ops.shape import concatenate, permute, reshape, section
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, plan_of, read, same


def leaf(graph: Graph, name: str, *shape: int) -> Expr:
    return graph.placeholder("model", name, Aval(shape, FLOAT32))


def stacked(graph: Graph, layers: int, axis: int) -> Expr:
    """Transposed matrices of 6 by 4, stacked."""
    parts = []
    for i in range(layers):
        turned = graph.call(permute, (leaf(graph, f"w{i}", 6, 4),), {"order": (1, 0)})
        parts.append(graph.call(reshape, (turned,), {"shape": (*(4, 6)[:axis], 1, *(4, 6)[axis:])}))
    return graph.call(concatenate, tuple(parts), {"axis": axis})


def test_a_stack_of_transposed_matrices_has_a_box_for_each() -> None:
    assert [box_shape(b) for b in segments.tiles(stacked(Graph(), 3, 1))] == [(4, 1, 6)] * 3


def test_boxes_of_stacks_of_stacks_are_those_of_the_sources() -> None:
    graph = Graph()
    inner = stacked(graph, 3, 0)
    single = graph.call(reshape, (inner,), {"shape": (3, 1, 4, 6)})
    outer = graph.call(concatenate, (single, single), {"axis": 1})
    assert [box_shape(b) for b in segments.tiles(outer)] == [(1, 1, 4, 6)] * 6


@pytest.mark.parametrize("limit", [4, 24, 50, 96, 1000])
def test_boxes_tile_a_tensor_and_keep_to_the_limit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LIMIT", limit)
    e = stacked(Graph(), 3, 1)
    count = np.zeros(e.aval.shape, int)
    for box in segments.tiles(e):
        count[tuple(slice(*span) for span in box)] += 1
        assert np.prod(box_shape(box)) * 4 <= max(limit, 4)
    assert (count == 1).all()


def test_only_what_changes_the_order_of_axes_is_made_in_boxes() -> None:
    graph = Graph()
    x = leaf(graph, "x", 6, 4)
    assert not mixes(graph.call(section, (x,), {"axis": 1, "start": 0, "stop": 2}))
    assert not mixes(graph.call(permute, (leaf(graph, "row", 1, 4),), {"order": (1, 0)}))
    assert mixes(graph.call(permute, (x,), {"order": (1, 0)}))


def test_rows_of_a_box_lie_where_the_tensor_has_them() -> None:
    x = np.arange(60).reshape(3, 4, 5)
    flat = np.full(60, -1)
    for box in (
        ((0, 3, 1), (1, 2, 1), (0, 5, 1)),
        ((0, 3, 1), (2, 4, 1), (0, 5, 1)),
        ((0, 3, 1), (0, 1, 1), (0, 5, 1)),
    ):
        for start, row in zip(*rows(x.shape, box, x[tuple(slice(*s) for s in box)]), strict=True):
            flat[start : start + row.size] = row.reshape(-1)
    assert flat.tolist() == list(range(60))


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (TILE + 7, 40), (33, 2, TILE * 2 + 1), (40, 50, 60)])
def test_elements_come_into_order_whatever_the_strides(shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    for axes in (tuple(reversed(range(len(shape)))), (*range(1, len(shape)), *range(min(1, len(shape))))):
        made = in_order(x.transpose(axes))
        assert made.flags.c_contiguous and made.shape == x.transpose(axes).shape
        assert np.array_equal(made, x.transpose(axes))


def layers(count: int, rows: int, columns: int) -> dict[str, Any]:
    return {f"layers.{i}.w": normal((rows, columns), seed=i) for i in range(count)}


def steps(count: int) -> list[dict[str, Any]]:
    """Transpose every layer and join them along the second axis."""
    turn = {"permute": {"from": r"layers\.(\d+)\.w", "to": r"t.\1", "order": [1, 0]}}
    single = {"reshape_": {"target": r"t\..*", "shape": [-1, 1, 300]}}
    join = {"concat": {"from": [rf"t\.{i}" for i in range(count)], "to": "stack", "dim": 1}}
    return [turn, single, join, {"delete": {"target": r"(t|layers)\..*"}}]


@pytest.mark.parametrize("limit", [1 << 25, 100_000, 1 << 13])
def test_a_stack_of_transposed_layers_is_what_numpy_says_and_reads_little(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "LIMIT", limit)
    tensors = layers(4, 300, 200)
    plan = plan_of(tmp_path, tensors, steps(4))
    world = Files()
    bs.run(bs.load(plan), durable=False, world=world)
    wanted = np.stack([x.T for x in tensors.values()], 1)
    assert same(read(plan["output"]["path"])["stack"], wanted)
    if limit == 1 << 25:
        assert world.bytes_read == wanted.nbytes


def test_a_box_may_have_no_elements_to_cut() -> None:
    assert whole(()) == ()
    assert [box_shape(b) for b in segments.tiles(leaf(Graph(), "scalar"))] == [()]


def test_a_comparison_of_a_transposed_tensor_reads_it_once(tmp_path: Path) -> None:
    x = normal((1200, 1000))
    turn = {"permute": {"from": r"a::w", "to": "a::t", "order": [1, 0]}}
    equal = {"assert": {"identical": {"left": "a::t", "right": "b::t"}}}
    plan = plan_of(tmp_path, {"a": {"w": x}, "b": {"t": np.ascontiguousarray(x.T)}}, [turn, equal])
    world = Files()
    bs.run(bs.load({key: plan[key] for key in ("inputs", "transforms")}), world=world)
    assert world.bytes_read == 2 * x.nbytes


def test_a_comparison_of_a_transposed_tensor_notices_one_element(tmp_path: Path) -> None:
    x = normal((1200, 1000))
    other = np.ascontiguousarray(x.T)
    other[999, 1199] += 1
    turn = {"permute": {"from": r"a::w", "to": "a::t", "order": [1, 0]}}
    equal = {"assert": {"identical": {"left": "a::t", "right": "b::t"}}}
    plan = plan_of(tmp_path, {"a": {"w": x}, "b": {"t": other}}, [turn, equal])
    with pytest.raises(PlanError, match="'t' differs in its bytes"):
        bs.load(plan).run(durable=False)
