"""The rule by which results are cut along a mesh: index arithmetic, without arrays or devices."""

from __future__ import annotations

from typing import Any

import pytest

import brainsurgery_jax as bs
import brainsurgery_jax.ops  # says which ops there are
from brainsurgery_jax.apply.axes import Spec, specs_of_results
from brainsurgery_jax.apply.lowering import Trees, lower_onto
from brainsurgery_jax.apply.names import name_leaves
from brainsurgery_jax.graph.expr import Expr, walk

SIZES = {"x": 4, "y": 2}


def spec(*axes: str) -> Spec:
    """`spec("x", "", "xy")`: the mesh axes of each axis, one letter each."""
    return tuple(tuple(names) for names in axes)


def cut(step: Any, shapes: dict[str, tuple[tuple[int, ...], Spec]], name: str) -> Spec:
    """How what a step calls `name` is cut."""
    import jax

    tree = {key: jax.ShapeDtypeStruct(shape, "float32") for key, (shape, _) in shapes.items()}
    given = {"model": name_leaves("model", tree)}
    loaded = bs.load({"inputs": ["model::a-tree"], "transforms": [step]})
    applied = lower_onto(loaded, given, Trees(given, readable=False), values=False)
    found: dict[Expr, tuple[Spec, ...]] = {}
    for e in walk([applied.names[name]]):
        own = (((),) * len(e.aval.shape),)
        if e.is_given:
            own = (shapes[e.name][1],)
        elif e.kind == "pick":
            own = (found[e.srcs[0]][e.index],)
        elif e.is_call:
            own = specs_of_results(e, [found[s][0] for s in e.srcs], SIZES)
        found[e] = own
    return found[applied.names[name]][0]


W = {"w": ((16, 8), spec("x", "y"))}
V = {"v": ((16, 8), spec("", "y"))}


@pytest.mark.parametrize(
    ("step", "tensors", "name", "wanted"),
    [
        ({"scale_": {"target": "w", "by": 2}}, W, "w", spec("x", "y")),
        ({"add_": {"from": "w", "to": "v"}}, W | V, "v", spec("x", "y")),
        ({"transpose_": {"target": "w"}}, W, "w", spec("y", "x")),
        ({"reshape_": {"target": "w", "shape": [4, 4, 8]}}, W, "w", spec("x", "", "y")),
        ({"reshape_": {"target": "w", "shape": [2, 8, 8]}}, W, "w", spec("", "", "y")),
        ({"reshape_": {"target": "w", "shape": [-1]}}, W, "w", spec("x")),
        ({"reshape_": {"target": "w", "shape": [1, 16, 8]}}, W, "w", spec("", "x", "y")),
        ({"take_": {"target": "w", "indices": [0, 1, 2]}}, W, "w", spec("", "y")),
        ({"take_": {"target": "w", "indices": [0, 1, 2, 4]}}, W, "w", spec("x", "y")),
        ({"pad_": {"target": "w", "shape": [20, -1]}}, W, "w", spec("x", "y")),
        ({"pad_": {"target": "w", "shape": [17, -1]}}, W, "w", spec("", "y")),
        ({"stack": {"from": ["w", "v"], "to": "s"}}, W | V, "s", spec("", "x", "y")),
        ({"concat": {"from": ["v", "w"], "to": "c"}}, W | V, "c", spec("x", "y")),
        ({"copy": {"from": "w::[3]", "to": "row"}}, W, "row", spec("y")),
        ({"copy": {"from": "w::[:8]", "to": "half"}}, W, "half", spec("x", "y")),
        ({"reduce": {"from": "w", "to": "r", "mode": "mean", "dim": 0}}, W, "r", spec("y")),
        ({"reduce": {"from": "w", "to": "r", "mode": "mean", "dim": 1}}, W, "r", spec("x")),
        ({"reduce": {"from": "w", "to": "r", "mode": "mean"}}, W, "r", spec()),
        (
            {"matmul": {"from_a": "a", "from_b": "b", "to": "c"}},
            {"a": ((16, 6), spec("x", "")), "b": ((6, 8), spec("", "y"))}, "c", spec("x", "y"),
        ),
        (
            {"matmul": {"from_a": "a", "from_b": "b", "to": "c"}},
            {"a": ((16, 8), spec("x", "y")), "b": ((8, 4), spec("y", "x"))}, "c", spec("x", "y"),
        ),
        ({"phlora": {"target": "w", "target_a": "A", "target_b": "B", "rank": 3}}, W, "A", spec("", "y")),
        ({"phlora": {"target": "w", "target_a": "A", "target_b": "B", "rank": 3}}, W, "B", spec("x", "")),
        ({"transpose_": {"target": "w"}}, {"w": ((16, 16), spec("xy", ""))}, "w", spec("", "xy")),
    ],
)  # fmt: skip
def test_a_result_is_cut_by_the_rule(step: Any, tensors: Any, name: str, wanted: Spec) -> None:
    assert cut(step, tensors, name) == wanted
