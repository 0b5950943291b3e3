"""Merges as the engine runs them: the same bits whatever the budget and threads, in bounded memory, and traced."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import fsum
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BY_NAME, to_numpy
from brainsurgery_jax.engine.run import budget
from brainsurgery_jax.index import parts
from brainsurgery_jax.merging.combine import add_multiples
from brainsurgery_jax.merging.linear import weighted_mean, weighted_sum
from brainsurgery_jax.merging.sparsify import Sparsifier
from brainsurgery_jax.merging.task_vectors import Summing, add_task_vectors
from brainsurgery_jax.merging.tensors import inner_product, inner_products
from tests.checkpoints import bits, normal, plan_of, read, set_block, write
from tests.measured import measured
from tests.merging.cases import CASES, merge, models

pytestmark = pytest.mark.usefixtures("here")

BF16 = ml_dtypes.bfloat16
SOME = ["linear", "slerp", "karcher", "ties", "model stock", "sce", "arcee fusion", "ramplus", "emr of a task"]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    found = {}
    for name, x in tree.items():
        found |= flat(x, f"{prefix}{name}.") if isinstance(x, Mapping) else {prefix + name: np.asarray(x)}
    return found


@pytest.mark.parametrize("as_array", [np.asarray, jax.numpy.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("which", CASES)
def test_scalars_are_merged_in_arrays_as_in_files(which: str, as_array: Any, tmp_path: Path):
    values = {"base": 1, "a": 2.5, "b": 1.25, "c": 4, **{f"{of}_{x}": 2 for of in ("fisher", "gram") for x in "abc"}}
    scalars = {alias: {"gate": np.float32(x).reshape(())} for alias, x in values.items()}
    plan = plan_of(tmp_path, scalars, {"merge": CASES[which].keys})
    plan["output"]["alias"] = "merged"
    bs.load(plan).run(durable=False)
    wanted = read(plan["output"]["path"])["gate"]
    given: dict[str, Any] = {alias: {"gate": as_array(x["gate"])} for alias, x in scalars.items()}
    found = np.asarray(bs.load(plan).apply(**given)["gate"])
    assert (found.shape, found.tobytes()) == ((), wanted.tobytes())


@pytest.mark.parametrize("name", SOME)
def test_traced_a_merge_is_the_same_up_to_rounding(name: str, tmp_path: Path):
    keys, tensors = CASES[name].keys, models()
    inputs = [f"{alias}::given-as-a-tree" for alias in tensors]
    plan = bs.load({"inputs": inputs, "transforms": [{"merge": keys}], "output": {"path": "o", "alias": "merged"}})
    made = merge(tmp_path, tensors, keys)
    apply: Any = plan.apply
    applied = flat(apply(**tensors))
    assert all(np.array_equal(applied[n], x) for n, x in made.items())
    traced = flat(jax.jit(lambda trees: apply(**trees))(tensors))
    for n, x in made.items():
        np.testing.assert_allclose(traced[n], x, rtol=1e-5, atol=1e-6)


LARGE = {
    "linear": {"method": "linear", "models": {"a": 0.3, "b": 0.7}},
    "slerp": {"method": "slerp", "models": ["a", "b"], "parameters": {"t": 0.4}},
    "ties": {"method": "ties", "base": "base", "models": ["a", "b"], "parameters": {"density": 0.3}},
    "ties over all": {"method": "ties", "base": "base", "models": ["a", "b"],
                      "parameters": {"density": 0.3, "threshold": "all"}},
    "dare": {"method": "dare_ties", "base": "base", "models": ["a", "b"], "parameters": {"density": 0.3}},
    "sce": {"method": "sce", "base": "base", "models": ["a", "b"], "parameters": {"select_topk": 0.3}},
    "arcee fusion": {"method": "arcee_fusion", "base": "base", "models": ["a"]},
    "della": {"method": "della", "base": "base", "models": ["a"], "parameters": {"density": 0.5}},
    "model stock of rows": {"method": "model_stock", "base": "base", "models": ["a", "b"],
                            "parameters": {"filter_wise": True}},
}  # fmt: skip


def three(shape: tuple[int, ...], dtype: Any) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for number, alias in enumerate(("base", "a", "b")):
        found[alias] = {f"h.{i}.w": normal(shape, seed=10 * number + i).astype(dtype) for i in range(2)}
        found[alias]["norm"] = normal(shape[-1:], seed=number).astype(dtype)
    return found


@pytest.mark.parametrize("keys", LARGE.values(), ids=LARGE)
def test_budget_and_threads_change_no_bit(keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_block(monkeypatch, 1 << 10, 1 << 8)
    tensors = three((70, 50), BF16)
    found = []
    for memory, threads in ((1 << 30, 1), (1 << 30, 4), (100 << 20, 2)):
        plan = plan_of(tmp_path, tensors, {"merge": {**keys, "to": "m"}})
        plan["output"]["alias"] = "m"
        monkeypatch.setattr(budget, "processors", lambda number=threads: frozenset(range(number)))
        bs.load(plan).run(durable=False, memory=memory)
        found.append(read(plan["output"]["path"]))
    for other in found[1:]:
        assert all(np.array_equal(other[name].view(np.uint16), x.view(np.uint16)) for name, x in found[0].items())


@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32])
@pytest.mark.parametrize("keys", LARGE.values(), ids=LARGE)
def test_the_length_of_a_piece_changes_no_bit(
    keys: dict[str, Any], dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tensors = three((70, 50), dtype)
    tensors["a"]["h.0.w"][3, :9] = np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1e-7
    found = []
    for length in (1 << 17, 900):
        monkeypatch.setattr(parts, "PIECE", length)
        plan = plan_of(tmp_path, tensors, {"merge": {**keys, "to": "m"}})
        plan["output"]["alias"] = "m"
        bs.load(plan).run(durable=False)
        found.append(read(plan["output"]["path"]))
    assert all(bits(found[1][name]) == bits(x) for name, x in found[0].items())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory apart")
@pytest.mark.parametrize("keys", LARGE.values(), ids=LARGE)
def test_a_merge_holds_no_more_than_projected(keys: dict[str, Any], tmp_path: Path):
    plans = []
    for shape in ((6000, 1500), (40, 30)):
        plan = plan_of(tmp_path, three(shape, BF16), {"merge": {**keys, "to": "m"}})
        plan["output"]["alias"] = "m"
        plans.append(plan)
    found = measured(*plans)
    assert found.anonymous <= found.in_all, found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory apart")
def test_random_numbers_of_several_models_are_projected_as_they_are_held(tmp_path: Path):
    keys = {"method": "dare_ties", "base": "base", "models": list("abcde"), "parameters": {"density": 0.3}, "to": "m"}
    plans = []
    for shape in ((6000, 1500), (40, 30)):
        six = {alias: {"w": normal(shape, seed=i).astype(BF16)} for i, alias in enumerate(["base", *"abcde"])}
        plan = plan_of(tmp_path, six, {"merge": keys})
        plan["output"]["alias"] = "m"
        plans.append(plan)
    found = measured(*plans)
    assert found.anonymous <= found.in_all, found
    alone = measured(*plans, threads=1)  # two threads may never be at their worst moments at once
    assert alone.anonymous <= alone.in_all <= 2 * alone.anonymous, alone


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path):
    keys = {"method": "ties", "base": "base", "models": ["a", "b"], "parameters": {"density": 0.3}, "to": "m"}
    peaks = [
        bs.load(plan_of(tmp_path, three(shape, BF16), {"merge": keys})).explain().peak
        for shape in ((3000, 1000), (12000, 1000))
    ]
    assert peaks[1] <= 1.1 * peaks[0]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merges_do_not_write_to_their_operands(dtype: str, exact: bool):
    known = BY_NAME[dtype]
    xs = [normal((30,), seed=seed).astype(to_numpy(known)) for seed in range(3)]
    for x in xs:
        x.setflags(write=False)
    given: dict[str, Any] = {"dtype": known, "exact": exact}
    plain = Summing((1.0, 0.5), (Sparsifier(), Sparsifier()), 0.3, consensus=False, normalize=False)
    for summing in (plain, plain._replace(consensus=True, normalize=True)):
        add_task_vectors(*xs, values=0, summing=summing, **given)
    factors = np.array([0.2, 0.3, 0.4])
    add_multiples(*xs, factors, values=1, based=False, divided=False, **given)
    add_multiples(*xs, factors, values=1, based=True, divided=True, **given)
    weighted_mean(*xs, values=0, weights=(0.2, 0.3, 0.5), **given)
    for weights in ((1.0, 1.0, 1.0), (0.5, 1.0, 2.0)):
        weighted_sum(*xs, values=0, weights=weights, **given)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 100_000])
def test_inner_products_are_sums_in_double_precision(size: int):
    x, y = (normal((size,), seed=seed).astype(np.float64) for seed in (1, 2))
    assert inner_product(x, y) == pytest.approx(fsum(float(a) * float(b) for a, b in zip(x, y, strict=True)), rel=1e-12)


def exact_products(vectors: list[np.ndarray]) -> list[float]:
    pairs = [(x, y) for at, x in enumerate(vectors) for y in vectors[at:]]
    return [fsum(float(a) * float(b) for a, b in zip(x, y, strict=True)) for x, y in pairs]


SHORT_FLOATS = [ml_dtypes.bfloat16, np.float16]


@pytest.mark.parametrize("size", [1, 511, 512, 100_000])
@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_inner_products_of_short_floats_err_by_less_than_float32_tells(dtype: type, size: int):
    vectors = [normal((size,), seed=seed).astype(dtype) for seed in (1, 2)]
    norms = float(np.linalg.norm(vectors[0].astype(float)) * np.linalg.norm(vectors[1].astype(float)))
    found = inner_products(vectors, double_sums=False)
    assert found == pytest.approx(exact_products(vectors), rel=0, abs=(2e-7 if size <= 512 else 5e-8) * norms)


@pytest.mark.parametrize("dtype", SHORT_FLOATS)
def test_inner_products_that_are_rounded_to_float32_are_summed_in_double_precision(dtype: type):
    vectors = [normal((9_000,), seed=seed).astype(dtype) for seed in (1, 2)]
    assert inner_products(vectors, double_sums=True) == pytest.approx(exact_products(vectors), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e25])
def test_inner_products_beyond_the_range_of_float32_are_summed_in_double_precision(scale: float):
    vectors = [(normal((2_000,), seed=seed) * scale).astype(ml_dtypes.bfloat16) for seed in (1, 2)]
    with np.errstate(all="ignore"):
        found = inner_products(vectors, double_sums=False)
    assert found == pytest.approx(exact_products(vectors), rel=1e-12)


def test_the_inner_product_of_zeros_is_zero():
    assert inner_products([np.zeros(600, ml_dtypes.bfloat16)], double_sums=False) == [0]


def test_random_choices_stay_with_the_alias_of_a_model(tmp_path: Path):
    held = {name: write(tmp_path / f"{name}.safetensors", {"w": normal((8, 8), seed=at)}) for at, name in
            enumerate(("base", "a", "b"))}  # fmt: skip

    def merged(**aliases: str) -> np.ndarray:
        step = {"method": "dare_linear", "base": "base", "models": list(aliases), "to": "merged",
                "parameters": {"density": 0.5}}  # fmt: skip
        inputs = [f"base::{held['base']}", *(f"{alias}::{held[name]}" for alias, name in aliases.items())]
        out = {"path": str(tmp_path / "out.safetensors"), "alias": "merged", "overwrite": True}
        bs.load({"inputs": inputs, "transforms": [{"merge": step}], "output": out}).run(durable=False)
        return read(tmp_path / "out.safetensors")["w"]

    np.testing.assert_allclose(merged(a="a", b="b"), merged(b="b", a="a"), rtol=1e-6, atol=1e-6)
    assert not np.allclose(merged(a="a", b="b"), merged(first="a", second="b"))
