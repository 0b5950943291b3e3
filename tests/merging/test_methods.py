"""Every merge method against an oracle in double precision, and the identities that published methods have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.merging.table import METHODS
from tests.checkpoints import normal, plan_of, read
from tests.merging import oracles as by
from tests.merging.cases import CASES, MergeCase, merge, models

pytestmark = pytest.mark.usefixtures("here")

BF16 = ml_dtypes.bfloat16
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def wanted(case: MergeCase, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: case.oracle(name, {alias: group[name] for alias, group in tensors.items() if name in group})
        for name in tensors["base"]
    }


def test_every_method_has_a_case():
    assert {case.keys["method"] for case in CASES.values()} | {"dare_linear", "della"} == set(METHODS)


@EACH
def test_a_merge_is_what_its_formula_says(case: MergeCase, tmp_path: Path):
    tensors = models()
    made = merge(tmp_path, tensors, case.keys)
    assert set(made) == set(tensors["base"])
    for name, x in wanted(case, tensors).items():
        assert made[name].dtype == np.float32
        np.testing.assert_allclose(made[name], x, rtol=case.within, atol=case.within, err_msg=name)


@pytest.mark.parametrize("model", ["a", "b"])
@pytest.mark.parametrize("method", ["magmax", "consensus", "ties", "ram", "linear"])
def test_nan_of_any_model_stays_nan(method: str, model: str, tmp_path: Path):
    tensors = models()
    name = next(iter(tensors[model]))
    broken = tensors[model][name].copy()
    broken.flat[0] = np.nan
    tensors[model] = {**tensors[model], name: broken}
    keys = {"method": method, "base": "base", "models": ["a", "b"], "to": "m"}
    if method == "linear":
        keys = {"method": method, "models": ["a", "b"], "to": "m"}
    assert np.isnan(merge(tmp_path, tensors, keys)[name].flat[0])


@pytest.mark.parametrize("weights", [{"a": 1, "b": -1}, {"a": 0.1, "b": 0.2, "c": -0.3}], ids=["exactly", "rounded"])
@pytest.mark.parametrize(("method", "switch"), [("linear", "normalize"), ("multislerp", "normalize_weights")])
def test_weights_that_add_up_to_zero_are_refused(
    method: str, switch: str, weights: Mapping[str, float], tmp_path: Path
):
    keys = {"method": method, "models": weights, "to": "m"}
    with pytest.raises(bs.PlanError, match="add up to 0") as told:
        merge(tmp_path, models(), keys)
    assert f"`parameters: {{{switch}: false}}`" in told.value.diagnostics[0].hint
    merge(tmp_path, models(), {**keys, "parameters": {switch: False}})


def test_weights_of_nuslerp_that_add_up_to_zero_are_refused(tmp_path: Path):
    keys = {"method": "nuslerp", "models": {"a": 1, "b": -1}, "to": "m"}
    with pytest.raises(bs.PlanError, match="add up to 0, and nuslerp divides by their sum"):
        merge(tmp_path, models(), keys)


def test_weights_of_nuslerp_count_by_their_ratio_however_small(tmp_path: Path):
    keys = {"method": "nuslerp", "to": "m"}
    small = merge(tmp_path, models(), {**keys, "models": {"a": 1e-7, "b": 3e-7}})
    for name, x in merge(tmp_path, models(), {**keys, "models": {"a": 1, "b": 3}}).items():
        np.testing.assert_allclose(small[name], x, rtol=1e-6, atol=1e-6)


SENSELESS = [
    ("multislerp", {"eps": -1e-8}), ("karcher", {"tol": -1}), ("karcher", {"max_iter": 2.5}),
    ("karcher", {"max_iter": 0}), ("ramplus_tl", {"r": -5}), ("ramplus_tl", {"alpha": -3}), ("ram", {"epsilon": -1}),
    ("consensus", {"least": 0}), ("consensus", {"least": 1.5}), ("consensus", {"mask": -1}),
    ("ties", {"normalize": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "given"), SENSELESS)
def test_numbers_that_mean_nothing_are_refused(method: str, given: dict[str, float], tmp_path: Path):
    keys = {"method": method, "models": ["a", "b"], "to": "m", "parameters": given}
    keys |= {"base": "base"} if METHODS[method].base == "needed" else {}
    with pytest.raises(bs.PlanError, match=rf"'{next(iter(given))}' is ") as told:
        merge(tmp_path, models(), keys)
    assert told.value.diagnostics[0].code == "merge-parameter"


@pytest.mark.parametrize(
    ("given", "least"), [(["a"], {}), (["a", "b"], {"least": 3}), (["base", "a", "b"], {"least": 3})]
)
def test_consensus_of_more_models_than_there_are_is_refused(given: list[str], least: dict[str, int], tmp_path: Path):
    keys = {"method": "consensus", "base": "base", "models": given, "to": "m", "parameters": least}
    with pytest.raises(bs.PlanError, match=r"consensus keeps what `least: \d` models need, and there (is 1|are 2)"):
        merge(tmp_path, models(), keys)


def test_consensus_keeps_the_base_where_a_model_of_another_shape_is_left_out(tmp_path: Path):
    tensors = models()
    tensors["b"] = {**tensors["b"], "norm.weight": np.ones(9, np.float32)}
    keys = {"method": "consensus", "base": "base", "models": ["a", "b"], "to": "m", "on_mismatch": "skip"}
    assert np.array_equal(merge(tmp_path, tensors, keys)["norm.weight"], tensors["base"]["norm.weight"])


def test_a_word_that_is_none_is_told_with_those_that_are(tmp_path: Path):
    keys = {"method": "emr", "base": "base", "models": ["a", "b"], "to": "m", "parameters": {"task": "bb"}}
    with pytest.raises(bs.PlanError, match=r"'task' is one of a, b, got 'bb'\. Did you mean 'b'\?") as told:
        merge(tmp_path, models(), keys)
    assert told.value.diagnostics[0].hint == "Write `task: b`, or leave it out."


@pytest.mark.parametrize("compat", ["no", "mergekit"])
def test_karcher_of_equal_models_is_the_model_whatever_the_tolerance(compat: str, tmp_path: Path):
    tensors = {alias: models()["a"] for alias in "ab"}
    keys = {"method": "karcher", "models": ["a", "b"], "to": "m", "parameters": {"tol": 0}, "compat": compat}
    for name, x in merge(tmp_path, tensors, keys).items():
        np.testing.assert_allclose(x, tensors["a"][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [float("inf"), float("-inf"), float("nan")], ids=str)
@pytest.mark.parametrize("method", ["linear", "multislerp", "ties"])
def test_a_weight_is_finite(method: str, weight: float, tmp_path: Path):
    keys = {"method": method, "models": {"a": weight, "b": 0.5}, "to": "m", "base": "base"}
    if method == "linear":
        del keys["base"]
    with pytest.raises(bs.PlanError, match="'weight' is a finite number, got"):
        merge(tmp_path, models(), keys)


CHOOSING = ("sce", "consensus", "emr", "arcee_fusion")
ROUNDED = [name for name, case in CASES.items() if case.keys["method"] not in CHOOSING]


@pytest.mark.parametrize("name", ROUNDED)
def test_short_floats_are_computed_in_float32_and_rounded_once(name: str, tmp_path: Path):
    tensors = models(BF16)
    made = merge(tmp_path, tensors, CASES[name].keys)
    for tensor, x in wanted(CASES[name], tensors).items():
        step = np.abs(x) * 2.0**-8 + 1e-4
        assert made[tensor].dtype == BF16
        off = np.abs(made[tensor].astype(np.float64) - x)
        assert np.mean(off > step) < 0.05, tensor  # of equal magnitudes more are kept than the oracle keeps


@pytest.mark.parametrize("name", ["linear", "slerp", "ties", "sce", "karcher", "nuslerp of rows", "model stock", "ram"])
def test_float64_stays(name: str, tmp_path: Path):
    tensors = models(np.float64)
    made = merge(tmp_path, tensors, CASES[name].keys)
    for tensor, x in wanted(CASES[name], tensors).items():
        np.testing.assert_allclose(made[tensor], x, rtol=1e-12, atol=1e-7 if name == "karcher" else 1e-12)


@pytest.mark.parametrize("alias", ["base", "a", "b", "c"])
@EACH
def test_where_one_model_is_in_float64_all_are_computed_in_it(case: MergeCase, alias: str, tmp_path: Path):
    tensors = models(BF16)
    wide = {name: {key: x.astype(np.float64) for key, x in group.items()} for name, group in tensors.items()}
    mixed = {**tensors, alias: wide[alias]}
    keys = {**case.keys, "dtype": "float64"}
    of_wide, of_mixed = merge(tmp_path, wide, keys), merge(tmp_path, mixed, keys)
    if alias in case.keys["models"] or alias == case.keys.get("base"):
        for name, x in of_wide.items():
            np.testing.assert_array_equal(of_mixed[name], x, err_msg=name)


# --- Identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1,), (1, 1), (0.3, 0.4, 0.3), (3, 5, 7)])
def test_the_average_of_equal_models_is_the_model(weights: tuple[float, ...], tmp_path: Path):
    tensors = models()
    given = dict(zip("abc", weights, strict=False))
    made = merge(tmp_path, dict.fromkeys(given, tensors["a"]), {"method": "linear", "models": given, "to": "merged"})
    assert all(np.array_equal(made[name], x) for name, x in tensors["a"].items())


@pytest.mark.parametrize(("t", "end"), [(0, "a"), (1, "b")])
def test_slerp_ends_at_its_models(t: float, end: str, tmp_path: Path):
    tensors = models()
    made = merge(tmp_path, tensors, {"method": "slerp", "models": ["a", "b"], "parameters": {"t": t}, "to": "m"})
    for name, x in tensors[end].items():
        np.testing.assert_allclose(made[name], x, rtol=0, atol=1e-7)


def test_ties_of_one_whole_model_is_task_arithmetic(tmp_path: Path):
    one = {"base": "base", "models": {"a": 0.5}, "to": "m"}
    trimmed = merge(tmp_path, models(), {"method": "ties", **one, "parameters": {"normalize": False}})
    added = merge(tmp_path, models(), {"method": "task_arithmetic", **one})
    assert all(np.array_equal(trimmed[name], x) for name, x in added.items())


def test_task_arithmetic_with_weight_one_gives_the_model_back(tmp_path: Path):
    made = merge(tmp_path, models(), {"method": "task_arithmetic", "base": "base", "models": ["a"], "to": "m"})
    for name, x in models()["a"].items():
        np.testing.assert_allclose(made[name], x, rtol=2e-7, atol=1e-7)


SYMMETRIC = ["linear", "karcher", "multislerp", "ties", "task arithmetic", "model stock", "sce", "ram", "magmax",
             "consensus", "emr", "iso", "breadcrumbs ties"]  # fmt: skip


@pytest.mark.parametrize("name", SYMMETRIC)
def test_the_order_of_models_does_not_matter(name: str, tmp_path: Path):
    keys = CASES[name].keys
    given = keys["models"]
    found = []
    for order in list(permutations(given))[:3]:
        listed = {alias: given[alias] for alias in order} if isinstance(given, dict) else list(order)
        found.append(merge(tmp_path, models(), {**keys, "models": listed}))
    for other in found[1:]:
        for tensor, x in found[0].items():
            np.testing.assert_allclose(other[tensor], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (2, 9)])
@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
def test_a_matrix_of_one_row_or_column_is_a_matrix(method: str, shape: tuple[int, int], tmp_path: Path):
    tensors = {alias: {"w": normal(shape, seed=seed)} for seed, alias in enumerate(("base", "a", "b", "c"))}
    found = merge(tmp_path, tensors, {"method": method, "base": "base", "models": ["a", "b", "c"], "to": "m"})["w"]
    base, *models = (np.asarray(tensors[alias]["w"], np.float64) for alias in tensors)
    np.testing.assert_allclose(found, getattr(by, method)(base, models), rtol=2e-5, atol=2e-6)
    if method == "iso_c" and min(shape) == 1:
        np.testing.assert_allclose(found, sum(models) - 2 * base, rtol=2e-5, atol=2e-6)


def _leading_half(delta: np.ndarray) -> np.ndarray:
    u, s, v = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    half = len(s) // 2
    return u[:, :half] * s[:half] @ v[:half]


def test_tsv_m_of_a_model_that_leaves_a_matrix_as_it_is_takes_the_leading_half_of_the_other(tmp_path: Path):
    base, delta = normal((12, 9), seed=1), normal((12, 9), seed=2)
    tensors = {"base": {"w": base}, "frozen": {"w": base}, "b": {"w": base + delta}}
    keys = {"method": "tsv_m", "base": "base", "models": ["frozen", "b"], "to": "m"}
    np.testing.assert_allclose(merge(tmp_path, tensors, keys)["w"], base + _leading_half(delta), rtol=1e-4, atol=1e-5)


def test_tsv_m_of_a_model_and_its_twin_takes_the_leading_half(tmp_path: Path):
    base, delta = normal((12, 9), seed=1), normal((12, 9), seed=2)
    tensors = {"base": {"w": base}, "a": {"w": base + delta}, "twin": {"w": base + delta}}
    keys = {"method": "tsv_m", "base": "base", "models": ["a", "twin"], "to": "m"}
    np.testing.assert_allclose(merge(tmp_path, tensors, keys)["w"], base + _leading_half(delta), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
def test_directions_that_no_model_changes_stay_as_they_are(method: str, tmp_path: Path):
    base = np.zeros((12, 9), np.float32)
    low_rank = {alias: normal((12, 2), seed=seed) @ normal((2, 9), seed=9) for seed, alias in enumerate("ab")}
    tensors = {"base": {"w": base}, **{alias: {"w": x} for alias, x in low_rank.items()}}
    made = merge(tmp_path, tensors, {"method": method, "base": "base", "models": ["a", "b"], "to": "m"})["w"]
    untouched = np.linalg.svd(low_rank["a"])[2][2:]  # both models change the same two directions of the input
    np.testing.assert_allclose(made @ untouched.T, 0, atol=1e-5)


def test_the_base_among_the_models_adds_nothing(tmp_path: Path):
    keys = {"method": "ties", "base": "base", "to": "m", "parameters": {"density": 0.5}}
    with_it = merge(tmp_path, models(), {**keys, "models": ["base", "a", "b"]})
    without = merge(tmp_path, models(), {**keys, "models": ["a", "b"]})
    assert all(np.array_equal(with_it[name], x) for name, x in without.items())


@pytest.mark.parametrize("compat", ["no", "mergekit"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("vectors", [
    [[1], [-0.5]], [[1], [-1]], [[3, 1, 0.7], [-0.3, -0.1, -0.07]], [[1, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]],
], ids=["numbers", "equal", "opposite", "three"])  # fmt: skip
def test_model_stock_of_task_vectors_that_cancel_is_the_base(vectors: Any, rows: bool, compat: str, tmp_path: Path):
    base = np.array([4.5, -0.25, 2], np.float32)[: len(vectors[0])][None]
    tensors = {
        "base": base,
        **{alias: base + np.array(x, np.float32) for alias, x in zip("abc", vectors, strict=False)},
    }
    keys = {"method": "model_stock", "base": "base", "models": list(tensors)[1:], "to": "m", "compat": compat,
            "parameters": {"filter_wise": rows}}  # fmt: skip
    made = merge(tmp_path, {alias: {"w": x} for alias, x in tensors.items()}, keys)["w"]
    assert made.tolist() == base.tolist()


# --- Statistics that say nothing --------------------------------------------------------------------------------------


def by_inputs(
    folder: Path, dead: Any, *, transposed: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """What regmean makes of two matrices [5, 6], both of them, and their inner products, of which inputs are 0."""
    a, b = (normal((5, 6), seed=seed) for seed in (1, 2))
    inputs = [normal((40, 6), seed=seed) for seed in (3, 4)]
    for x in inputs:
        x[:, dead] = 0
    grams = [x.T @ x for x in inputs]
    held = {"a": a, "b": b} if not transposed else {"a": a.T.copy(), "b": b.T.copy()}
    tensors = {**held, "gram_a": grams[0], "gram_b": grams[1]}
    keys = {"method": "regmean", "models": {alias: {"statistics": f"gram_{alias}"} for alias in "ab"}, "to": "m",
            "parameters": {"transposed": transposed}}  # fmt: skip
    made = merge(folder, {alias: {"w": x} for alias, x in tensors.items()}, keys)["w"]
    return (made.T if transposed else made), a, b, grams


@pytest.mark.parametrize("wrong", [-1, np.nan, np.inf])
def test_fisher_information_that_is_none_stops_the_run(wrong: float, tmp_path: Path):
    tensors = {alias: {"w": normal((6, 5), seed=seed) ** 2} for seed, alias in enumerate(("a", "b", "fa", "fb"))}
    tensors["fb"]["w"][2, 3] = wrong
    keys = {"method": "fisher", "models": {alias: {"statistics": f"f{alias}"} for alias in "ab"}, "to": "m"}
    with pytest.raises(PlanError, match="Fisher information is negative, infinite or NaN") as told:
        merge(tmp_path, tensors, keys)
    if wrong == -1:
        clamp = yaml.safe_load(re.findall("`(.*)`", str(told.value))[0].replace("...", "fb::w"))
        plan = plan_of(tmp_path, tensors, [clamp, {"merge": {**keys, "to": "a"}}])
        bs.load(plan).run(durable=False)
        found = {alias: np.maximum(x["w"], 0) for alias, x in tensors.items()}
        wanted = by.fisher(None, [found["a"], found["b"]], [found["fa"], found["fb"]])
        np.testing.assert_allclose(read(plan["output"]["path"])["w"], wanted, rtol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_regmean_averages_the_columns_of_inputs_that_no_model_has(transposed: bool, tmp_path: Path):
    made, a, b, grams = by_inputs(tmp_path, [1, 4], transposed=transposed)
    np.testing.assert_allclose(made[:, [1, 4]], (a + b)[:, [1, 4]] / 2, rtol=1e-6)
    live = [0, 2, 3, 5]
    wanted = by.regmean(None, [a[:, live], b[:, live]], [g[np.ix_(live, live)] for g in grams])
    np.testing.assert_allclose(made[:, live], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("triangle", [np.tril, np.triu])
def test_a_triangle_of_inner_products_stops_regmean(triangle: Any, tmp_path: Path):
    grams = [x.T @ x for x in (normal((40, 6), seed=seed) for seed in (3, 4))]
    held = {"a": normal((5, 6)), "b": normal((5, 6), seed=1), "gram_a": grams[0], "gram_b": triangle(grams[1])}
    keys = {"method": "regmean", "models": {alias: {"statistics": f"gram_{alias}"} for alias in "ab"}, "to": "m"}
    with pytest.raises(PlanError, match=r"statistics are not symmetric \(a triangle is not enough\)"):
        merge(tmp_path, {alias: {"w": x} for alias, x in held.items()}, keys)


def test_regmean_averages_matrices_whose_statistics_are_all_zero(tmp_path: Path):
    made, a, b, _ = by_inputs(tmp_path, slice(None))
    np.testing.assert_allclose(made, (a + b) / 2, rtol=1e-6)


def test_regmean_adds_the_least_to_the_mean_where_inputs_are_fewer_than_columns(tmp_path: Path):
    a, b = (normal((5, 6), seed=seed) for seed in (1, 2))
    inputs = [np.round(4 * normal((2, 6), seed=seed)) for seed in (3, 4)]  # whole numbers, whose products are exact
    tensors = {"a": a, "b": b, **{f"gram_{alias}": x.T @ x for alias, x in zip("ab", inputs, strict=True)}}
    keys = {"method": "regmean", "models": {alias: {"statistics": f"gram_{alias}"} for alias in "ab"}, "to": "m",
            "parameters": {"off_diagonal": 1}}  # fmt: skip
    made = merge(tmp_path, {alias: {"w": x} for alias, x in tensors.items()}, keys)["w"]
    mean = (a.astype(float) + b) / 2
    outputs = np.vstack([x @ (w - mean).T for x, w in zip(inputs, (a, b), strict=True)])
    added = np.linalg.lstsq(np.vstack(inputs).astype(float), outputs)[0].T
    np.testing.assert_allclose(made, mean + added, rtol=1e-5, atol=1e-5)


# --- Chance -----------------------------------------------------------------------------------------------------------

LARGE = (300, 200)


def large() -> dict[str, dict[str, np.ndarray]]:
    base = {"w": np.zeros(LARGE, np.float32)}
    return {"base": base, "a": {"w": np.ones(LARGE, np.float32)}, "b": {"w": np.full(LARGE, 2, np.float32)}}


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_what_chance_keeps_is_the_same_for_a_seed_and_another_for_another(method: str, tmp_path: Path):
    keys = {"method": method, "base": "base", "models": ["a", "b"], "to": "m", "parameters": {"density": 0.5}}
    first, again, other = (merge(tmp_path, models(), keys, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(again[name], x) for name, x in first.items())
    assert any(not np.array_equal(other[name], x) for name, x in first.items())


def test_models_and_tensors_have_chances_of_their_own(tmp_path: Path):
    tensors = {alias: {"w": x["w"], "v": x["w"]} for alias, x in large().items()}
    keys = {"method": "dare_linear", "base": "base", "to": "m", "parameters": {"density": 0.5, "rescale": "no"}}
    made = merge(tmp_path, tensors, {**keys, "models": ["a", "b"]})
    shares = [np.mean(made["w"] == value) for value in (0, 1, 2, 3)]
    np.testing.assert_allclose(shares, 0.25, atol=0.02)
    assert 0.1 < np.mean(made["w"] == made["v"]) < 0.4


def test_dare_keeps_so_many_entries_and_divides_them_by_the_density(tmp_path: Path):
    keys = {"method": "dare_linear", "base": "base", "models": ["a"], "to": "m", "parameters": {"density": 0.2}}
    made = merge(tmp_path, large(), keys)["w"]
    assert set(np.unique(made)) == {0.0, 5.0}
    assert abs(np.mean(made != 0) - 0.2) < 0.01


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_rescaled_by_l1_the_sum_of_magnitudes_stays(method: str, tmp_path: Path):
    keys = {"method": method, "base": "base", "models": ["a"], "to": "m"}
    parameters = {"density": 0.4, "rescale": "l1"}
    made = merge(tmp_path, models(), {**keys, "parameters": parameters})
    tensors = models()
    for name, x in made.items():
        before = np.abs(tensors["a"][name] - tensors["base"][name]).sum()
        np.testing.assert_allclose(np.abs(x - tensors["base"][name]).sum(), before, rtol=1e-4)


def test_della_keeps_large_entries_more_often_than_small_ones(tmp_path: Path):
    row = np.tile(np.linspace(0.01, 1, 200, dtype=np.float32), (300, 1))
    tensors = {"base": {"w": np.zeros_like(row)}, "a": {"w": row}}
    parameters = {"density": 0.5, "epsilon": 0.3, "rescale": "no"}
    keys = {"method": "della_linear", "base": "base", "models": ["a"], "to": "m", "parameters": parameters}
    kept = (merge(tmp_path, tensors, keys)["w"] != 0).mean(0)
    probability = 0.2 + 0.6 * np.arange(200) / 199
    assert np.abs(kept.reshape(20, 10).mean(1) - probability.reshape(20, 10).mean(1)).max() < 0.05


@pytest.mark.parametrize("rescale", ["inverse", "l1", "no"])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_at_its_defaults_della_keeps_all_entries(method: str, rescale: str, tmp_path: Path):
    keys = {"method": method, "base": "base", "models": ["a"], "to": "m", "parameters": {"rescale": rescale}}
    tensors = models()
    for name, x in merge(tmp_path, tensors, keys).items():
        np.testing.assert_allclose(x, tensors["a"][name], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_of_density_zero_gives_the_base(method: str, tmp_path: Path):
    keys = {"method": method, "base": "base", "models": ["a"], "to": "m", "parameters": {"density": 0}}
    tensors = models()
    assert all(np.array_equal(x, tensors["base"][name]) for name, x in merge(tmp_path, tensors, keys).items())


# --- Ties, and thresholds over all parameters -------------------------------------------------------------------------


def test_of_equal_magnitudes_all_are_kept(tmp_path: Path):
    d = np.array([1, -1, 1, 1, 0.5, 0.25], np.float32)
    tensors = {"base": {"w": np.zeros(6, np.float32)}, "a": {"w": d}}
    keys = {"method": "ties", "base": "base", "models": ["a"], "to": "m", "parameters": {"density": 0.5}}
    assert merge(tmp_path, tensors, keys)["w"].tolist() == [1, -1, 1, 1, 0, 0]


@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_a_threshold_over_all_parameters_ranks_all_tensors_together(method: str, tmp_path: Path):
    tensors, keys = models(), {"method": method, "base": "base", "models": ["a", "b"], "to": "m"}
    parameters = {"density": 0.3, "threshold": "all"} | ({"gamma": 0.05} if method == "breadcrumbs" else {})
    made = merge(tmp_path, tensors, {**keys, "parameters": parameters})
    names = list(tensors["base"])
    flat = {alias: np.concatenate([tensors[alias][n].ravel() for n in names]) for alias in ("base", "a", "b")}
    if method == "ties":
        x = by.ties(flat["base"], [flat["a"], flat["b"]], (1, 1), (0.3, 0.3))
    else:
        x = by.breadcrumbs(flat["base"], [flat["a"], flat["b"]], (1, 1), 0.3, 0.05)
    np.testing.assert_allclose(np.concatenate([made[n].ravel() for n in names]), x, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, r"`gamma: 0\.01` has no effect for '.*' of 'a', and for 4 more tensors: `density: 1` keeps the rest"),
        ({"density": 0.8, "gamma": 0.3}, r"`gamma: 0\.3` counts as 0\.2 for .*: `density: 0\.8` keeps the rest"),
        ({"density": {"layers.0.w": 1, ".*": 0.8}}, r"'layers\.0\.w' of 'a': `density: 1` keeps the rest"),
        ({"density": 0.7, "gamma": 0.3}, None),
        ({"gamma": 0}, None),
    ],
)
def test_a_note_says_where_breadcrumbs_leaves_out_fewer_entries_than_gamma_says(
    method: str, parameters: dict[str, Any], says: str | None, tmp_path: Path
):
    keys = {"method": method, "base": "base", "models": ["a", "b"], "to": "merged", "parameters": parameters}
    plan = plan_of(tmp_path, models(), {"merge": keys})
    plan["output"]["alias"] = "merged"
    notes = [d.message for d in bs.load(plan).run(durable=False).notes]
    assert len(notes) == (says is not None)
    assert says is None or re.search(says, notes[0])


# --- As mergekit rounds -----------------------------------------------------------------------------------------------


def short(x: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, in float32 for the next step."""
    return np.asarray(x, np.float32).astype(BF16).astype(np.float32)


def rounded_nearswap(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    share = np.clip(short(short(1 / np.maximum(short(abs(a - b)), np.float32(1e-6))) * np.float32(t)), 0, 1)
    return short(short(share * b) + short(short(1 - share) * a))


def rounded_fusion(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    def softmax(x: np.ndarray) -> np.ndarray:
        made = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
        return short(short(made / made.sum(-1, keepdims=True)) + np.float32(1e-8))

    p, q = softmax(b), softmax(a)
    divergence = short((short(p * short(np.log(short(p / q))))).astype(np.float64).sum(-1, keepdims=True))
    importance = short(short(abs(short(b - a))) * divergence)
    low, middle, high = (np.sort(importance.ravel())[int(s * (importance.size - 1))] for s in (0.25, 0.5, 0.75))
    threshold = short(middle + short(np.float32(1.5) * short(high - low)))
    return short(a + np.where(importance >= threshold, short(b - a), np.float32(0)))


@pytest.mark.parametrize("method", ["nearswap", "arcee_fusion"])
def test_compat_rounds_every_step_to_the_dtype_of_the_tensors(method: str, tmp_path: Path):
    tensors = models(BF16)
    keys = {"method": method, "base": "base", "models": ["a"], "to": "m", "compat": "mergekit"}
    keys |= {"parameters": {"t": 0.1}} if method == "nearswap" else {}
    made = merge(tmp_path, tensors, keys)
    for name, x in made.items():
        a, b = (tensors[alias][name].astype(np.float32) for alias in ("base", "a"))
        wanted = rounded_nearswap(a, b, 0.1) if method == "nearswap" else rounded_fusion(a, b)
        assert np.array_equal(x.astype(np.float32), wanted), name


@pytest.mark.parametrize("case", ["linear", "slerp", "nuslerp", "multislerp", "task arithmetic", "ties"])
def test_compat_computes_float64_in_float64(case: str, tmp_path: Path):
    tensors = models(np.float64)
    made = merge(tmp_path, tensors, {**CASES[case].keys, "compat": "mergekit"})
    for name, x in wanted(CASES[case], tensors).items():
        np.testing.assert_allclose(made[name], x, rtol=1e-14, atol=1e-14)


def test_compat_rounds_the_numbers_of_slerp_to_float32(tmp_path: Path):
    tensors = models()
    parameters = {"t": 0.3}
    keys = {"method": "slerp", "models": ["a", "b"], "parameters": parameters, "to": "m", "compat": "mergekit"}
    made = merge(tmp_path, tensors, keys)
    f = np.float32
    for name, x in made.items():
        a, b = tensors["a"][name], tensors["b"][name]
        norms = [f(np.linalg.norm(y.astype(np.float64))) for y in (a, b)]
        angle = f(np.arccos(np.float64(f(np.sum(a.astype(np.float64) * b)) / (norms[0] * norms[1]))))
        sines = [f(np.sin(np.float64(angle * f(share)))) / f(np.sin(np.float64(angle))) for share in (0.7, 0.3)]
        assert np.array_equal(x, a * sines[0] + b * sines[1]), name
