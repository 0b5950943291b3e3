"""What a run computes: step by step, whatever the length of blocks, and the same from run to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainsurgery_jax.engine.plan.blocks import BLOCK
from tests.checkpoints import FLOATS, bits, counting, normal, np_dtype, run_plan, same, set_block

CHAIN: list[dict[str, Any]] = [
    {"scale_": {"target": "w", "by": 0.3}},
    {"add_": {"from": "d", "to": "w"}},
    {"cast_": {"target": "w", "to": "float16"}},
    {"scale_": {"target": "w", "by": -1.7}},
    {"cast_": {"target": "w", "to": "float32"}},
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_steps_run_together_give_the_bits_of_steps_run_one_by_one(dtype: Any, tmp_path: Path) -> None:
    with np.errstate(all="ignore"):
        tensors = {"w": normal((40, 50)).astype(np_dtype(dtype)), "d": normal((40, 50), seed=1).astype(np_dtype(dtype))}
    together, alone = run_plan(tmp_path, tensors, CHAIN), tensors
    for step in CHAIN:
        alone = run_plan(tmp_path, alone, step)
    assert bits(together["w"]) == bits(alone["w"])


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_no_element_is_lost_at_the_end_of_a_block(size: int, tmp_path: Path) -> None:
    w = np.arange(size, dtype=np.int32)
    made = run_plan(
        tmp_path, {"w": w}, [{"scale": {"from": "w", "to": "v", "by": 2}}, {"add_": {"from": "w", "to": "v"}}]
    )
    assert (made["v"] == 3 * w).all()


def test_tensors_without_elements_or_axes_are_computed(tmp_path: Path) -> None:
    tensors = {"none": np.zeros((0, 3), np.float32), "point": np.array(2.0, np.float32)}
    made = run_plan(
        tmp_path, tensors, [{"scale_": {"target": ".*", "by": 3}}, {"cast_": {"target": ".*", "to": "bfloat16"}}]
    )
    assert made["none"].shape == (0, 3)
    assert (made["point"].shape, float(made["point"])) == ((), 6.0)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        pytest.param({"copy": {"from": "w::[::3, 1::2]", "to": "v"}}, lambda w: w[::3, 1::2], id="slice"),
        pytest.param({"permute": {"from": "w", "to": "v", "order": [1, 0]}}, lambda w: w.T, id="permute"),
        pytest.param(
            {"concat": {"from": ["w", "w::[:, 5:9]"], "to": "v", "dim": 1}},
            lambda w: np.concatenate([w, w[:, 5:9]], 1),
            id="concat",
        ),
        pytest.param(
            {"split": {"from": "w", "to": ["v", "u"], "sizes": [7, 593], "dim": 1}}, lambda w: w[:, :7], id="split"
        ),
    ],
)
def test_structural_steps_on_computed_tensors_cross_blocks(step: dict[str, Any], wanted: Any, tmp_path: Path) -> None:
    w = counting((2001, 600), np.int32)
    made = run_plan(tmp_path, {"w": w}, [{"scale_": {"target": "w", "by": 2}}, step])
    assert same(made["v"], wanted(2 * w))


PLAN: list[dict[str, Any]] = [
    {"scale_": {"target": "w", "by": 0.7}},
    {"permute": {"from": "w", "to": "t", "order": [1, 0]}},
    {"matmul": {"from_a": "w", "from_b": "t", "to": "g"}},
    {"phlora": {"target": "g", "target_a": "A", "target_b": "B", "rank": 3, "delete_original": False}},
    {"cast_": {"target": "t", "to": "bfloat16"}},
]


def test_a_plan_gives_the_same_bytes_from_run_to_run(tmp_path: Path) -> None:
    plan = [*PLAN, {"rand": {"target": "r", "shape": [3000]}}]
    one, two = (run_plan(tmp_path, {"w": normal((60, 70))}, plan) for _ in range(2))
    assert {n: bits(x) for n, x in one.items()} == {n: bits(x) for n, x in two.items()}


def test_the_length_of_blocks_changes_no_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"w": normal((400, 500))}
    long = run_plan(tmp_path, tensors, PLAN)
    set_block(monkeypatch, 1 << 16)
    short = run_plan(tmp_path, tensors, PLAN)
    assert {n: bits(x) for n, x in long.items()} == {n: bits(x) for n, x in short.items()}


def test_three_thousand_steps_on_one_tensor_are_no_deep_recursion(tmp_path: Path) -> None:
    tensors = {"w": np.zeros(4, np.int32), "d": np.arange(4, dtype=np.int32)}
    made = run_plan(tmp_path, tensors, [{"add_": {"from": "d", "to": "w"}}] * 3000)
    assert made["w"].tolist() == [0, 3000, 6000, 9000]


def test_a_tensor_added_to_itself_forty_times_is_forty_additions(tmp_path: Path) -> None:
    made = run_plan(tmp_path, {"w": np.ones(2, np.int64)}, [{"add_": {"from": "w", "to": "w"}}] * 40)
    assert made["w"].tolist() == [1 << 40] * 2


def test_random_values_do_not_depend_on_what_else_the_plan_does(tmp_path: Path) -> None:
    rand = {"rand": {"target": "r", "shape": [50, 30], "seed": 7}}
    alone = run_plan(tmp_path, {"w": normal((3,))}, rand)["r"]
    beside = run_plan(tmp_path, {"w": normal((9, 9))}, [{"rand": {"target": "q", "shape": [7]}}, rand])["r"]
    assert bits(alone) == bits(beside)


def test_equal_shapes_of_a_pattern_get_different_random_values(tmp_path: Path) -> None:
    tensors = {"a": np.zeros(8, np.float32), "b": np.zeros(8, np.float32)}
    made = run_plan(tmp_path, tensors, {"fill_": {"target": ".*", "mode": "rand", "seed": 7}})
    assert bits(made["a"]) != bits(made["b"])


def test_a_contraction_without_elements_can_be_asserted_and_dumped(tmp_path: Path) -> None:
    steps = [
        {"matmul": {"from_a": "a", "from_b": "b", "to": "c"}},
        {"assert": {"iszero": "c"}},
        {"dump": {"target": "c", "verbosity": "stat"}},
    ]
    out = run_plan(tmp_path, {"a": np.zeros((0, 3), np.float32), "b": np.zeros((3, 4), np.float32)}, steps)
    assert out["c"].shape == (0, 4)


def test_a_box_that_spans_more_than_a_block_is_computed_block_by_block(tmp_path: Path):
    x = np.arange(3 * BLOCK // 2 + 4, dtype=np.float32)[: 2 * (3 * BLOCK // 4)].reshape(2, -1)
    steps = [
        {"scale_": {"target": "w", "by": 0.5}},
        {"reshape_": {"target": "w", "shape": [x.shape[1], 2]}},
        {"permute": {"from": "w", "to": "t", "order": [1, 0]}},
    ]
    assert same(run_plan(tmp_path, {"w": x}, steps)["t"], (x * np.float32(0.5)).reshape(-1, 2).T)


def test_zero_and_minus_zero_are_different_numbers(tmp_path: Path):
    steps = [
        {"copy": {"from": "x", "to": "y"}},
        {"scale_": {"target": "x", "by": 0.0}},
        {"scale_": {"target": "y", "by": -0.0}},
    ]
    out = run_plan(tmp_path, {"x": np.ones(3, np.float32)}, steps)
    assert not np.signbit(out["x"]).any()
    assert np.signbit(out["y"]).all()
