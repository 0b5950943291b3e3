"""Reductions of transposed tensors: what they go over lies as it does in the file, and the values are numpy's."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.expression.evaluate import evaluate
from brainsurgery_jax.expression.parse import parse_expression
from brainsurgery_jax.expression.program import Computation
from brainsurgery_jax.expression.transposes import reduce_as_it_lies
from brainsurgery_jax.expression.typing import type_expression
from brainsurgery_jax.graph.expr import is_fold, is_whole, walk
from brainsurgery_jax.world import Files
from tests.checkpoints import normal
from tests.engine.test_expression_memory import sparse

X, Y, R = normal((3, 5, 4), seed=1), normal((3, 5, 4), seed=2), normal((4, 1, 1), seed=3)


def typed(expr: str) -> tuple[Computation, list[np.ndarray]]:
    parsed = parse_expression(expr)
    arrays = {name: array for name, array in {"r": R, "x": X, "y": Y}.items() if name in parsed.names}
    avals = tuple(Aval(a.shape, BY_NAME[a.dtype.name]) for a in arrays.values())
    return type_expression(parsed, tuple(arrays), avals).program, list(arrays.values())


def sources(program: Computation) -> list[str]:
    """The operations below the reductions of a program."""
    nodes = program.nodes
    (folded,) = (node for node in nodes if node.op in ("sum", "mean", "max", "norm", "median", "quantile", "var"))
    below, todo = [], [*folded.sources]
    while todo:
        node = nodes[todo.pop()]
        below.append(node.op)
        todo += node.sources
    return below


@pytest.mark.parametrize(
    "expr",
    [
        "median(x.T * 2)",
        "max(x.T, axis=0)",
        "sum(abs(x.T) + y.T, axis=(0, 1))",
        "norm(transpose(x, (1, 2, 0)) - 1, axis=-1)",
        "mean(transpose(x, (1, 2, 0)), axis=0, keepdims=True)",
        "quantile(transpose(x, (2, 0, 1)), 0.3, axis=1, keepdims=True)",
        "var(where(x.T > 0, x.T, 3), axis=2)",
        "x.T / norm(x.T, axis=(0, 2), keepdims=True)",
    ],
)
def test_a_reduction_of_what_is_transposed_goes_over_it_as_it_lies(expr: str) -> None:
    program, arrays = typed(expr)
    made = reduce_as_it_lies(program, 0)
    assert "transpose" in sources(program)
    assert "transpose" not in sources(made)
    assert made.aval == program.aval
    np.testing.assert_allclose(evaluate(made, arrays)[0], evaluate(program, arrays)[0], rtol=1e-6)


def test_what_is_small_beside_it_is_transposed_back() -> None:
    program, arrays = typed("sum(x.T * r, axis=0)")
    made = reduce_as_it_lies(program, 0)
    assert [node.op for node in made.nodes].count("transpose") == 2  # r, and the result
    np.testing.assert_allclose(evaluate(made, arrays)[0], evaluate(program, arrays)[0], rtol=1e-6)


@pytest.mark.parametrize("expr", ["sum(x, axis=0)", "x.T + 1", "sum(x.T[:, 0], axis=0)"])
def test_others_stay_as_they_are(expr: str) -> None:
    program, _ = typed(expr)
    assert reduce_as_it_lies(program, 0) == program


@pytest.mark.parametrize("expr", ["median(x.T * 2)", "norm(x.T + y.T, axis=0)", "min(x.T, axis=1)"])
def test_of_a_large_tensor_nothing_is_held_whole(expr: str, tmp_path: Path) -> None:
    tensors: Any = {"x": ("F32", [8192, 4096]), "y": ("F32", [8192, 4096])}
    used = {name: name for name in sorted(parse_expression(expr).names)}
    step = {"compute": {"from": used, "expr": expr, "to": "out"}}
    plan = bs.load({"inputs": [f"m::{sparse(tmp_path / 'in.safetensors', tensors)}"], "transforms": [step],
                    "output": str(tmp_path / "out.safetensors")})  # fmt: skip
    with closing(Files()) as world:
        (made,) = bs.explain(plan, world).program.publications
        calls = [e for e in walk([made.tensors["out"]]) if e.kind == "call" and is_whole(e)]
    assert all(is_fold(e) or all(s.aval.nbytes < 1 << 20 for s in e.srcs) for e in calls)
