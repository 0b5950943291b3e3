"""Memory is projected from shapes alone: no run holds more, the figure is near, and it does not grow with the model.

Two threads hold as much as was projected only if their jobs meet at their worst moments, which is a matter of timing.
So a figure that is far from what two threads held is compared with what one holds, which runs one job at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.world import Files
from tests.checkpoints import Tensors, normal, plan_of
from tests.measured import Measured, Plan, measured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory apart")

BF16 = ml_dtypes.bfloat16
WORTH_IT = 15 << 20
"""Bytes held by a thread from which on a projection must be near: below, constants weigh as much as tensors."""

Steps = Sequence[Mapping[str, Any]]


def model(dtype: Any, layers: int = 4) -> Tensors:
    """Some tens of megabytes: an embedding of many blocks, layers of one or two."""
    some = normal((1 << 20,)).astype(dtype)
    return {"e": np.resize(some, (9000, 1024))} | {f"h.{i}.w": np.resize(some, (1024, 1500)) for i in range(layers)}


def tiny(tensors: Tensors) -> Tensors:
    """Tiny tensors of which the same steps make as many: what is kept in mind of each tensor is the process's own."""
    return {name: np.ascontiguousarray(x[:40]) for name, x in tensors.items()}


Plans = tuple[Plan, Plan]
"""A plan, and the same steps on tiny tensors."""


def plans_of(folder: Path, tensors: Mapping[str, Any], steps: Steps) -> Plans:
    """These steps on these tensors, and on tiny ones. `tensors` as for `plan_of`."""
    several = isinstance(next(iter(tensors.values())), Mapping)
    small = {alias: tiny(group) for alias, group in tensors.items()} if several else tiny(tensors)
    return plan_of(folder, tensors, steps), plan_of(folder, small, steps)


def check(plans: Plans) -> None:
    found = measured(*plans)
    assert found.anonymous <= found.in_all, found
    assert found.mapped < 8 << 20, found  # code of libraries that tiny tensors did not need, never the checkpoint
    if not is_near(found, threads=2):
        alone = measured(*plans, threads=1)
        assert is_near(alone, threads=1), (alone, found)


def is_near(found: Measured, *, threads: int) -> bool:
    """Whether a projection is at most three times what so many threads held, or what they held too little to tell."""
    return found.anonymous < threads * WORTH_IT or found.in_all <= 3 * found.anonymous


CHAIN: Steps = [
    {"scale_": {"target": ".*", "by": 0.5}},
    {"cast_": {"target": ".*", "to": "float32"}},
    {"clamp_": {"target": ".*", "max": 1}},
    {"cast_": {"target": ".*", "to": "bfloat16"}},
]
STREAMED: dict[str, Steps] = {
    "scale": [{"scale_": {"target": ".*", "by": 0.5}}],
    "cast": [{"cast_": {"target": ".*", "to": "float16"}}],
    "chain": CHAIN,
    "permute": [{"permute": {"from": "e", "to": "t", "order": [1, 0]}}],
    "concat": [{"concat": {"from": ["e", "e"], "to": "c", "dim": 1}}, {"scale_": {"target": "c", "by": 2}}],
    "assert": [{"assert": {"not": {"iszero": {"of": ".*", "eps": 1e-3}}}}, {"scale_": {"target": ".*", "by": 0.5}}],
    "asserts": [{"assert": {"all": [{"finite": ".*"}, {"norm": {"of": ".*", "ge": 1}}]}}],
    "expression": [{"compute": {"from": {"x": ".*"}, "expr": "where(abs(x) > 0.5, x * 2, tanh(x) + x ** 2)"}}],
    "dump": [{"dump": {"verbosity": "stat"}}],
    "transpose": [{"transpose_": {"target": "e"}}],
    "take": [{"take_": {"target": ".*", "indices": [*range(29, -1, -1)] * 30, "dim": 1}}],
    "repeat": [{"repeat_": {"target": "h.*", "times": 2, "mode": "each", "dim": 1}}],
    "pad": [{"pad_": {"target": ".*", "width": [0, [3, 5]], "value": 1}}],
    "stack": [{"stack": {"from": r"h\.(?P<i>\d)\.w", "to": "h", "over": "i", "dim": 1}}],
    "unstack": [{"unstack": {"from": "e::[:, :30]", "to": "e.${k}", "over": "k", "dim": 1}}],
    "columns": [{"unstack": {"from": "e", "to": "e.${k}", "over": "k", "dim": 1}}],
    "reduce": [{"reduce": {"from": "(.*)", "to": r"\1.norm", "mode": "norm", "dim": 1}}],
    "reduce rows": [{"reduce": {"from": "(.*)", "to": r"\1.mean", "mode": "mean", "dim": 0}}],
    "median of a permuted tensor": [
        {"permute_": {"target": "e", "order": [1, 0]}},
        {"compute": {"from": {"x": "e"}, "expr": "median(x, axis=1)", "to": "m"}},
    ],
    "rand": [{"rand": {"target": "noise", "shape": [5000, 1000], "seed": 1}}],
}


@pytest.mark.parametrize("steps", STREAMED.values(), ids=STREAMED)
def test_what_is_streamed_holds_no_more_than_projected(tmp_path: Path, steps: Steps):
    check(plans_of(tmp_path, model(BF16), steps))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("job", ["permute", "median of a permuted tensor"])
def test_a_projection_four_times_as_large_would_be_told(tmp_path: Path, job: str, threads: int):
    found = measured(*plans_of(tmp_path, model(BF16), STREAMED[job]), threads=threads)
    assert not is_near(found._replace(in_all=4 * found.in_all), threads=threads)


@pytest.mark.parametrize(
    "step",
    [
        {"add_": {"from": "b::(.*)", "to": r"a::\1"}},
        {"divide_": {"from": "b::(.*)", "to": r"a::\1"}},
        {"lerp_": {"from": "b::(.*)", "to": r"a::\1", "t": 0.3}},
        {"assert": {"equal": {"left": "a::(.*)", "right": r"b::\1"}}},
        {"assert": {"equal": {"left": "a::(.*)", "right": r"b::\1", "eps": 1e-3}}},
        {"assert": {"close": {"left": "a::(.*)", "right": r"b::\1"}}},
        {"compute": {"from": {"x": "a::(.*)", "y": r"b::\1"}, "expr": "x + 0.5 * (y - x)"}},
    ],
    ids=["add", "divide", "lerp", "equal", "equal within eps", "close", "expression"],
)
def test_two_checkpoints_hold_no_more_than_projected(tmp_path: Path, step: dict[str, Any]):
    both = {alias: model(np.float32, layers=2) for alias in "ab"}
    check(plans_of(tmp_path, both, [step, {"scale_": {"target": "a::.*", "by": 0.5}}]))


# --- Whole matrices ---------------------------------------------------------------------------------------------------

PHLORA = {"phlora": {"target": "(.*)", "target_a": r"\1.A", "target_b": r"\1.B", "rank": 16}}
SHAPES = {"square": (1300, 1300), "tall": (12000, 600), "wide": (600, 12000)}


def falling(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A matrix whose singular values fall fast, for which the quick methods do; those of noise fall back."""
    rng = np.random.default_rng(seed)
    left, right = (rng.standard_normal((n, 64)) / np.sqrt(n) for n in shape)
    return ((left * 0.9 ** np.arange(64)) @ right.T).astype(np.float32)


def matrices(shape: tuple[int, int], dtype: Any) -> Tensors:
    made = {"noise": normal(shape), "falling": falling(shape), "noise.2": normal(shape, seed=1)}
    return {name: x.astype(dtype) for name, x in made.items()}


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_factorization_holds_no_more_than_projected(tmp_path: Path, shape: tuple[int, int], dtype: Any):
    check(plans_of(tmp_path, matrices(shape, dtype), [PHLORA]))


@pytest.mark.parametrize("shape", [(700, 700), (6000, 300), (300, 6000)], ids=SHAPES)
def test_an_exact_factorization_holds_no_more_than_projected(tmp_path: Path, shape: tuple[int, int]):
    exactly = {"phlora": PHLORA["phlora"] | {"method": "exact"}}
    check(plans_of(tmp_path, matrices(shape, np.float32), [exactly]))


def test_a_rewrite_holds_no_more_than_projected(tmp_path: Path):
    steps = [
        {"copy": {"from": "(.*)", "to": r"before.\1"}},
        {"phlora_": {"target": "noise.*|falling", "rank": 32}},
        {"add_": {"from": r"before\.(.*)", "to": r"\1"}},
        {"cast_": {"target": "noise.*|falling", "to": "bfloat16"}},
        {"delete": {"target": "before.*"}},
    ]
    check(plans_of(tmp_path, matrices((1300, 1300), np.float32), steps))


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
def test_a_contraction_holds_no_more_than_projected(tmp_path: Path, dtype: Any):
    step = {"from_a": "noise", "from_b": "noise.2", "to": "product", "equation": "ij,ik->kj"}
    check(
        plans_of(
            tmp_path, matrices((6000, 800), dtype), [{"einsum": step}, {"delete": {"target": "(noise|falling).*"}}]
        )
    )


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
def test_an_interpolation_holds_no_more_than_projected(tmp_path: Path, dtype: Any):
    table = {"table": normal((80, 80, 800)).astype(dtype)}
    check(plans_of(tmp_path, table, [{"resize_": {"target": "table", "shape": [96, 64, -1], "method": "bicubic"}}]))


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
def test_a_product_of_a_permuted_matrix_holds_no_more_than_projected(tmp_path: Path, dtype: Any):
    steps = [
        {"permute": {"from": "(.*)", "to": r"turned.\1", "order": [1, 0]}},
        {"matmul": {"from_a": r"turned\.(.*)", "from_b": r"\1", "to": r"product.\1"}},
        {"delete": {"target": "(turned|noise|falling).*"}},
    ]
    check(plans_of(tmp_path, matrices((6000, 800), dtype), steps))


EXPRESSIONS = [
    "x - outer(r, r @ x)",
    "x / norm(x, axis=1, keepdims=True)",
    "where(abs(x) > quantile(abs(x), 0.5), x, 0)",
]


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_an_expression_on_whole_matrices_holds_no_more_than_projected(tmp_path: Path, expr: str, dtype: Any):
    used = {"x": "noise.*", "r": "r"} if "r @" in expr else {"x": "noise.*"}
    tensors = {**matrices((2000, 2400), dtype), "r": normal((2000,)).astype(dtype)}
    plan, small = tensors, {name: x[:40] if x.ndim == 1 else x[:40, :30] for name, x in tensors.items()}
    steps = [{"compute": {"from": used, "expr": expr}}]
    check((plan_of(tmp_path, plan, steps), plan_of(tmp_path, small, steps)))


# --- The model, and the budget ----------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path):
    steps = [{"scale_": {"target": ".*", "by": 0.5}}, PHLORA]
    layers = {f"h.{i}.w": falling((900, 800), seed=i) for i in range(24)}
    few, many = (measured(*plans_of(tmp_path, dict(list(layers.items())[:n]), steps)) for n in (8, 24))
    assert (few.largest, few.in_all) == (many.largest, many.in_all)
    assert many.anonymous <= 1.2 * few.anonymous


def test_a_budget_of_the_largest_task_is_enough_and_is_kept(tmp_path: Path):
    tensors = {f"h.{i}.w": falling((2100, 2100), seed=i) for i in range(3)}
    plan, small = (plan_of(tmp_path, group, [PHLORA]) for group in (tensors, tiny(tensors)))
    budget = bs.load(plan).explain().peak
    assert measured(plan, small, memory=budget).anonymous <= budget


def test_a_budget_below_the_largest_task_is_refused_with_both_figures_before_anything_is_read(tmp_path: Path):
    plan = bs.load(plan_of(tmp_path, {"w": normal((1000, 500))}, [PHLORA]))
    largest = plan.explain().peak
    files = Files()
    with pytest.raises(bs.PlanError, match=r"the largest task needs [\d.]+ MB of memory, the budget is [\d.]+ MB"):
        plan.run(memory=largest - 1, world=files)
    assert files.bytes_read == 0


def test_what_is_copied_as_bytes_is_projected_to_take_no_memory(tmp_path: Path):
    plan = plan_of(tmp_path, {"w": normal((1000, 500))}, [{"move": {"from": "w", "to": "v"}}])
    assert bs.load(plan).explain().peak == 0


# --- A rank that values choose ----------------------------------------------------------------------------------------


def by_energy(folder: Path, share: float) -> Plans:
    factors = {"target": "w", "target_a": "A", "target_b": "B", "rank": {"energy": share}}
    return plans_of(folder, {"w": normal((8192, 512))}, [{"phlora": factors}])


def test_a_rank_of_all_of_the_energy_holds_about_what_is_announced_at_most(tmp_path: Path):
    found = measured(*by_energy(tmp_path, 1.0))
    assert found.anonymous <= found.in_all <= 1.5 * found.anonymous, found


def test_a_rank_that_turns_out_low_needs_no_more_than_its_own_projection(tmp_path: Path):
    plans = by_energy(tmp_path, 0.05)
    found = measured(*plans, memory=60 << 20)  # which the largest rank would not fit
    assert found.anonymous <= 60 << 20 < found.largest, found


def test_a_rank_that_turns_out_too_high_for_the_budget_is_refused_when_it_is_known(tmp_path: Path):
    plan, _ = by_energy(tmp_path, 1.0)
    with pytest.raises(bs.PlanError, match="the largest task needs"):
        bs.load(plan).run(durable=False, memory=60 << 20)
