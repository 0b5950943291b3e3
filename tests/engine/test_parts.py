"""Results that are made part by part: the same bits as a whole, whatever follows; every tensor read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.engine.plan import footprint
from brainsurgery_jax.engine.plan.footprint import Cost, box_cost, box_cost_once
from brainsurgery_jax.engine.plan.segments import tiles
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.expression import partition
from brainsurgery_jax.expression.parse import parse_expression
from brainsurgery_jax.graph.expr import cuts_of, is_whole, walk
from brainsurgery_jax.index.boxes import box_shape
from brainsurgery_jax.index.parts import AxisCut, is_part, operand_box, part_sizes, parts, parts_around
from brainsurgery_jax.ops import compute
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, plan_of, read, run_plan, same

X = normal((60, 40))
TENSORS = {"x": X, "s": normal((60,), seed=1), "q": normal((40, 30), seed=2), "y": normal((60, 40), seed=3)}


@pytest.fixture(autouse=True)
def _streamed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything goes by in parts of a few rows."""
    monkeypatch.setattr(compute, "STREAMED", 0)
    for name, value in {"PART": 4000, "PRODUCTS": 4000, "CHEAP": 8, "AGAIN": 64, "RUN": 4}.items():
        monkeypatch.setattr(partition, name, value)
    partition.partition.cache_clear()
    yield
    partition.partition.cache_clear()


def formula(expr: str, to: str = "out", **keys: Any) -> dict[str, Any]:
    used = sorted(parse_expression(expr).names)
    return {"compute": {"from": {name: name for name in used}, "expr": expr, "to": to} | keys}


def whole(patch: pytest.MonkeyPatch, expr: str) -> np.ndarray:
    """What an expression gives as a whole."""
    with patch.context() as alone:
        alone.setattr(compute, "STREAMED", 1 << 60)
        return np.asarray(bs.load({"transforms": [formula(expr)]}).apply(TENSORS)["out"])


EXPRESSIONS = [
    "x * s[:, None]",
    "x / norm(x, axis=1, keepdims=True)",
    "x - mean(x)",
    "x - outer(s, s @ x)",
    "where(abs(x) > quantile(abs(x), 0.5), x, 0)",
    "x.T * 2",
    "reshape(x * s[:, None], (6, 400))",
    "x @ q",
    "(x + y)[::-1] * s[:, None]",
    "stack(x, y, axis=1) * s[:, None, None]",
]


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_parts_give_the_bits_of_the_whole(expr: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, TENSORS, [formula(expr)])
    (out,) = bs.load(plan).explain().program.publications
    assert cuts_of(out.tensors["out"]) is not None
    bs.load(plan).run(durable=False)
    wanted = whole(monkeypatch, expr)
    assert same(read(plan["output"]["path"])["out"], wanted)
    assert same(np.asarray(bs.load({"transforms": [formula(expr)]}).apply(TENSORS)["out"]), wanted)
    np.testing.assert_allclose(
        jax.jit(bs.load({"transforms": [formula(expr)]}).apply)(TENSORS)["out"], wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_parts_that_are_alike_are_priced_once_and_no_other_way(
    expr: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out,) = bs.load(plan_of(tmp_path, TENSORS, [formula(expr)])).explain().program.publications
    e, known = out.tensors["out"], dict[Any, Cost]()
    boxes = list(tiles(e)) or [tuple((0, n, 1) for n in e.aval.shape)]
    each = [box_cost([e], box) for box in boxes]
    priced: list[Cost] = []
    monkeypatch.setattr(footprint, "box_cost", lambda *given: priced.append(box_cost(*given)) or priced[-1])
    assert [box_cost_once([e], box, (), known) for box in boxes] == each
    assert not known or len(priced) == len({box_shape(box) for box in boxes})


FOLLOWED: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "cast": ([{"cast_": {"target": "out", "to": "float16"}}], lambda z: z.astype(np.float16)),
    "scale": ([{"scale_": {"target": "out", "by": 2}}], lambda z: z * 2),
    "add": ([{"add_": {"from": "y", "to": "out"}}], lambda z: z + TENSORS["y"]),
    "permute": ([{"permute_": {"target": "out", "order": [1, 0]}}], lambda z: z.T),
    "concat": ([{"concat": {"from": ["out", "y"], "to": "both", "dim": 1}}], lambda z: np.hstack([z, TENSORS["y"]])),
    "reshape": ([{"reshape_": {"target": "out", "shape": [48, 50]}}], lambda z: z.reshape(48, 50)),
    "slice": ([{"copy": {"from": "out::[7:53:3, 1:]", "to": "both"}}], lambda z: z[7:53:3, 1:]),
    "update": ([{"assign": {"from": "y::[:5]", "to": "out::[20:25]"}}],
               lambda z: np.concatenate([z[:20], TENSORS["y"][:5], z[25:]])),
    "take": ([{"take_": {"target": "out", "indices": [59, 0, 31, 0]}}], lambda z: z[[59, 0, 31, 0]]),
    "matmul": ([{"matmul": {"from_a": "out", "from_b": "q", "to": "both"}}], lambda z: z @ TENSORS["q"]),
    "another": ([{"compute": {"from": {"z": "out"}, "expr": "z - mean(z, axis=1, keepdims=True)"}}],
                lambda z: z - z.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)),
    "reduce": ([{"reduce": {"from": "out", "to": "both", "mode": "max", "dim": 0}}], lambda z: z.max(0)),
}  # fmt: skip


@pytest.mark.parametrize("steps", FOLLOWED, ids=list(FOLLOWED))
def test_other_steps_follow_as_on_any_tensor(steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more, oracle = FOLLOWED[steps]
    made = run_plan(tmp_path, TENSORS, [formula("x * s[:, None]"), *more])
    assert same(made.get("both", made["out"]), oracle(whole(monkeypatch, "x * s[:, None]")))


def test_every_tensor_is_read_once_even_if_asserts_look_at_the_result(tmp_path: Path) -> None:
    asserts = [
        {"assert": {"all": [{"finite": "out"}, {"not": {"iszero": "out"}}, {"norm": {"of": "out", "ge": 1}}]}},
        {"dump": {"target": "out", "verbosity": "stat"}},
        {"delete": {"target": "[xsqy]"}},
    ]
    plan, files = plan_of(tmp_path, TENSORS, [formula("x * s[:, None]"), *asserts]), Files()
    report = bs.run(bs.load(plan), durable=False, world=files)
    assert files.bytes_read == X.nbytes + TENSORS["s"].nbytes
    made = X * TENSORS["s"][:, None]
    assert report.said == (f"└── out  shape=[60, 40] min={made.min():.6g} max={made.max():.6g} "
                           f"mean={made.astype(float).mean():.6g} reads=4 writes=1",)  # fmt: skip


def test_what_fails_an_assert_is_placed_at_its_element(tmp_path: Path) -> None:
    x = X.copy()
    x[41, 7] = np.nan
    plan = plan_of(tmp_path, TENSORS | {"x": x}, [formula("x * s[:, None]"), {"assert": {"finite": "out"}}])
    with pytest.raises(PlanError, match=r"'out' has 1 value that is not finite, first at \[41, 7\]"):
        bs.load(plan).run(durable=False)


def test_a_part_that_is_refused_stops_the_run(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TENSORS, [formula("x * 1000 * s[:, None]", dtype="int8")])
    with pytest.raises(PlanError, match="a value does not fit int8"):
        bs.load(plan).run(durable=False)
    assert not Path(plan["output"]["path"]).exists()


def test_what_all_parts_need_is_computed_once_and_kept(tmp_path: Path) -> None:
    (out,) = bs.load(plan_of(tmp_path, TENSORS, [formula("x - outer(s, s @ x)")])).explain().program.publications
    kept = [e for e in walk([out.tensors["out"]]) if is_whole(e)]
    assert [e.aval.shape for e in kept] == [(40,)]


def test_reductions_of_two_axes_are_cut_along_the_other_two(tmp_path: Path) -> None:
    x = normal((3, 50, 4, 8))
    step = {"compute": {"from": {"x": "x"}, "expr": "x / norm(x, axis=(2, 3), keepdims=True)"}}
    plan = plan_of(tmp_path, {"x": x}, [step])
    (out,) = bs.load(plan).explain().program.publications
    cuts = cuts_of(out.tensors["x"])
    assert cuts is not None and [cut.axis for cut in cuts] == [0, 1]
    bs.load(plan).run(durable=False)
    norms = np.sqrt((x.astype(np.float64) ** 2).sum((2, 3), keepdims=True)).astype(np.float32)
    assert same(read(plan["output"]["path"])["x"], x / norms)


# --- Index arithmetic -------------------------------------------------------------------------------------------------

CUTS = (AxisCut(0, 2, 1, (0, None)), AxisCut(1, 5, 2, (1, 0)))
"""Of a result [4, 10]: rows in two units, columns in five, two of these in each part."""


def test_parts_make_up_the_result_without_gap_or_overlap() -> None:
    seen = np.zeros((4, 10), int)
    boxes = list(parts((4, 10), CUTS))
    for box in boxes:
        seen[tuple(slice(*span) for span in box)] += 1
    assert (seen == 1).all()
    assert len(boxes) == 2 * 3


def test_a_part_takes_the_same_units_of_each_operand() -> None:
    box = list(parts((4, 10), CUTS))[4]
    assert box == ((2, 4, 1), (4, 8, 1))
    assert operand_box((4, 10), CUTS, box, 0, (2, 20)) == ((1, 2, 1), (8, 16, 1))
    assert operand_box((4, 10), CUTS, box, 1, (5, 7)) == ((2, 4, 1), (0, 7, 1))


def test_the_parts_around_a_box_are_those_that_it_has_elements_of() -> None:
    around = parts_around((4, 10), CUTS, ((1, 2, 1), (1, 9, 7)))
    assert around == [((0, 2, 1), (0, 4, 1)), ((0, 2, 1), (4, 8, 1)), ((0, 2, 1), (8, 10, 1))]


@given(st.data())
def test_a_box_is_a_part_if_it_is_one_of_those_that_make_up_the_result(data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)), max_size=3))
    shape = tuple(each * units for each, units, _ in axes)
    cuts = tuple(AxisCut(axis, units, min(step, units), ()) for axis, (_, units, step) in enumerate(axes) if step > 1)
    made = list(parts(shape, cuts))
    spans = st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n), st.integers(1, 2)) for n in shape))
    box = data.draw(st.sampled_from(made) | spans)
    assert is_part(shape, cuts, box) == (box in made)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3))
def test_the_sizes_of_parts_are_counted_without_making_them(axes: list[tuple[int, int, int]]) -> None:
    shape = tuple(each * units for each, units, _ in axes)
    cuts = tuple(AxisCut(axis, units, min(step, units), ()) for axis, (_, units, step) in enumerate(axes))
    assert part_sizes(shape, cuts) == Counter(prod(box_shape(box)) for box in parts(shape, cuts))
    assert part_sizes(shape, ()) == {prod(shape): 1}
