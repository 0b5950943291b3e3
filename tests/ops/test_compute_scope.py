"""`compute`: local names, numbers of a match, and what ranges over all matches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.lower.view import StepView
from brainsurgery_jax.ops import compute
from tests.checkpoints import normal, plan_of, problems, read, run_plan, same, set_block

LAYERS = {f"h.{i}.{part}": normal((3, 4), seed=7 * i + at) for i in range(3) for at, part in enumerate(("q", "k"))}


def step(expr: str, to: str | None = None, of: str = r"h\.(?P<i>\d+)\.(.*)", **keys: Any) -> dict[str, Any]:
    return {"compute": {"from": {"w": of}, "expr": expr, **({"to": to} if to else {}), **keys}}


def refused(found: Any) -> tuple[str, str]:
    (error,) = [p for p in found if p.severity == "error"]
    return error.code, error.message


# --- Local names ------------------------------------------------------------------------------------------------------


def test_local_names_are_parts_of_the_expression(tmp_path: Path) -> None:
    let = {"n": "norm(w, axis=1, keepdims=True)", "u": "w / n"}
    found = run_plan(tmp_path, LAYERS, step("u - mean(u) * n", let=let))
    for name, w in LAYERS.items():
        n = np.linalg.norm(w, axis=1, keepdims=True)
        np.testing.assert_allclose(found[name], w / n - np.mean(w / n) * n, rtol=1e-5, atol=1e-6)


def test_a_local_name_may_be_a_shape_or_several_results(tmp_path: Path) -> None:
    let = {"parts": "svd(w)", "k": "w.shape[0]"}
    found = run_plan(tmp_path, LAYERS, step("parts[0] * parts[1] @ parts[2] * k", let=let))
    np.testing.assert_allclose(found["h.0.q"], 3 * LAYERS["h.0.q"], rtol=1e-5, atol=1e-6)


def test_elementwise_local_names_leave_the_expression_elementwise(tmp_path: Path, monkeypatch: Any) -> None:
    wanted = run_plan(tmp_path, LAYERS, step("(w + 1) * (w + 1) / 3"))
    set_block(monkeypatch, 5, 3)
    found = run_plan(tmp_path, LAYERS, step("a * a / 3", let={"a": "w + 1"}))
    assert all(same(found[name], x) for name, x in wanted.items())


@pytest.mark.parametrize(
    ("expr", "let", "code", "match"),
    [
        ("a", {"a": "b", "b": "w"}, "expression-name", "'a' uses 'b', which is not known yet"),
        ("w", {"w": "w"}, "expression-name", "'w' is both under `from` and under `let`"),
        ("a", {"a": "v + w"}, "expression-name", "'v' is not among the names under `from`"),
        ("a", {"a": "w @ w"}, "expression-value", "'w @ w' of f32.3,4. and f32.3,4.: cannot be multiplied"),
        ("sum", {"sum": "w"}, "expression-syntax", "'sum' is a function"),
        ("a", {"a": "sum_over(w)"}, "expression-name", "'a' ranges over the matches"),
    ],
)
def test_a_local_name_that_cannot_be_is_refused(
    expr: str, let: dict[str, str], code: str, match: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=match) as caught:
        run_plan(tmp_path, LAYERS, step(expr, let=let))
    assert {d.code for d in caught.value.diagnostics if d.severity == "error"} == {code}


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_what_a_pattern_captured_is_a_number(tmp_path: Path) -> None:
    found = run_plan(tmp_path, LAYERS, step("a / 2", let={"a": r"w * ${i} + ${i * 2 + 1}"}))
    for name, w in LAYERS.items():
        i = np.float32(int(name[2]))
        assert same(found[name], (w * i + (i * 2 + 1)) / np.float32(2))


@pytest.mark.parametrize("expr", ["w * 0 + (${i - 6}) ** 2", "w * 0 + ${i - 6} ** 2", "w * 0 - ${6 - i} * ${i - 6}"])
def test_a_number_in_an_expression_may_be_negative(expr: str, tmp_path: Path) -> None:
    found = run_plan(tmp_path, LAYERS, step(expr))
    assert {name: float(x[0, 0]) for name, x in found.items()} == {name: (int(name[2]) - 6) ** 2 for name in LAYERS}


def test_an_exponent_may_be_a_negative_number_of_the_match(tmp_path: Path) -> None:
    found = run_plan(tmp_path, LAYERS, step("w ** ${i - 1}"))
    assert same(found["h.0.q"], 1 / LAYERS["h.0.q"])


def test_a_name_counts_from_0_though_a_number_may_be_negative(tmp_path: Path) -> None:
    found = refused(problems(tmp_path, LAYERS, step("w * ${i - 1}", to=r"x.${i - 1}.\2")))
    assert found[0] == "template-arithmetic" and "names count from 0" in found[1]


def test_a_captured_text_with_two_signs_is_no_number(tmp_path: Path) -> None:
    found = refused(problems(tmp_path, {"h.--3": LAYERS["h.0.q"]}, step("w * ${s}", of=r"h\.(?P<s>.*)")))
    assert found[0] == "expression-value"
    assert "'${s}' is '--3' for 'h.--3', which is no whole number" in found[1]


def test_a_config_gives_numbers(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    plan = plan_of(
        tmp_path / "model", LAYERS, step(r"w / ${config.num_layers} * ${model::config.rope.theta} * ${config.sizes.1}")
    )
    source = Path(plan["inputs"][0].partition("::")[2])
    folder = tmp_path / "source"
    folder.mkdir()
    source.rename(folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"num_layers": 3, "rope": {"theta": 0.5}, "name": "x", "sizes": [4, 2]})
    )
    plan["inputs"] = [f"model::{folder}"]
    bs.load(plan).run(durable=False)
    made = read(plan["output"]["path"])
    assert same(made["h.1.q"], LAYERS["h.1.q"] / np.float32(3) * np.float32(0.5) * 2)
    for text, match in (
        ("num_layer", "has no 'num_layer'. Did you mean 'num_layers'"),
        ("rope.thet", "has no 'rope.thet'. Did you mean 'rope.theta'"),
        ("sizes[1]", r"has no 'sizes\[1\]'. Did you mean 'sizes.1'"),
        ("name", "'name' of config.json is no number"),
    ):
        plan["transforms"] = [step(f"w * ${{config.{text}}}")]
        with pytest.raises(PlanError, match=match):
            bs.load(plan).run(durable=False)


@pytest.mark.parametrize(
    ("expr", "code", "match"),
    [
        ("w * ${j}", "expression-value", "asks for 'j'"),
        (r"w * ${\2}", "expression-value", "is 'k' for 'h.0.k', which is no whole number"),
        ("w * ${i / 2}", "expression-value", "is not a formula"),
        ("w * ${config.n}", "expression-value", "'model' has no config to take 'n' from"),
        ("w * $i", "expression-syntax", "has no meaning in an expression"),
    ],
)
def test_a_number_that_is_none_is_refused(expr: str, code: str, match: str, tmp_path: Path) -> None:
    found = [p for p in problems(tmp_path, LAYERS, step(expr)) if p.severity == "error"]
    assert {p.code for p in found} == {code}
    assert match in found[0].message


# --- Sets -------------------------------------------------------------------------------------------------------------


def everything(*of: str) -> np.ndarray:
    return np.concatenate([LAYERS[n].ravel() for n in sorted(LAYERS) if n.endswith(of or ("q", "k"))])


def test_a_global_norm_is_one_step(tmp_path: Path) -> None:
    found = run_plan(tmp_path, LAYERS, step("sqrt(sum_over(sum(w ** 2)))", to="norm"))
    np.testing.assert_allclose(found["norm"], np.linalg.norm(everything()), rtol=1e-6)


def test_a_result_for_each_name_that_the_matches_make(tmp_path: Path) -> None:
    found = run_plan(tmp_path, LAYERS, step("sqrt(sum_over(sum(w ** 2)))", to=r"norm.\2"))
    for part in ("q", "k"):
        np.testing.assert_allclose(found[f"norm.{part}"], np.linalg.norm(everything(part)), rtol=1e-6)


@pytest.mark.parametrize("streamed", [0, compute.STREAMED])
def test_a_threshold_of_all_parameters_prunes_each(streamed: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(compute, "STREAMED", streamed)
    expr = "where(abs(w) >= quantile(concat_over(reshape(abs(w), -1)), 0.75), w, 0)"
    found = run_plan(tmp_path, LAYERS, step(expr))
    least = np.quantile(np.abs(everything()), np.asarray(0.75))
    for name, w in LAYERS.items():
        assert same(found[name], np.where(np.abs(w) >= least, w, np.float32(0)))


def test_means_and_stacks_of_matches(tmp_path: Path) -> None:
    found = run_plan(tmp_path, LAYERS, [
        step("mean(stack_over(w), axis=0)", to="mean"),
        step("sum_over(w) / 6", to="also"),
        step("concat_over(w[:1] * ${i})", to="rows", of=r"h\.(?P<i>\d+)\.q"),
    ])  # fmt: skip
    stacked = np.stack([LAYERS[n] for n in sorted(LAYERS)])
    np.testing.assert_allclose(found["mean"], stacked.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["also"], stacked.mean(0), rtol=1e-5, atol=1e-6)
    assert same(found["rows"], np.concatenate([LAYERS[f"h.{i}.q"][:1] * np.float32(i) for i in range(3)]))


@pytest.mark.parametrize("expr", ["stack_over(w)", "concat_over(reshape(w, (1, -1)))", "stack_over(w * 1) + 0"])
@pytest.mark.parametrize("group", [r"(?P<i>\d+)", r"\d+"])
def test_row_i_of_what_is_joined_is_layer_i(expr: str, group: str, tmp_path: Path) -> None:
    layers = {f"h.{i}.w": np.full(2, i, np.float32) for i in range(12)}
    found = run_plan(tmp_path, layers, step(expr, to="all", of=rf"h\.{group}\.w"))
    assert same(found["all"], np.stack([layers[f"h.{i}.w"] for i in range(12)]))


def test_numbers_at_several_places_of_a_name_are_ordered_from_left_to_right(tmp_path: Path) -> None:
    experts = {f"h.{i}.e{e}.w": np.array(100 * i + e, np.float32) for i in (10, 9) for e in (11, 2)}
    found = run_plan(tmp_path, experts, step("stack_over(w)", to="all", of=r"h\..*\.w"))
    assert found["all"].tolist() == [902, 911, 1002, 1011]


def test_a_penalty_of_two_models_and_their_fisher_information(tmp_path: Path) -> None:
    tensors = {f"{alias}.{n}": x * (at + 1) for at, alias in enumerate("abf") for n, x in LAYERS.items()}
    made = {"from": {"a": r"a\.(.*)", "b": r"b.\1", "f": r"f.\1"}, "to": "loss",
            "expr": "sum_over(sum(f * (a - b) ** 2)) / 2"}  # fmt: skip
    found = run_plan(tmp_path, tensors, {"compute": made})
    np.testing.assert_allclose(found["loss"], 1.5 * np.sum(everything().astype(np.float64) ** 3), rtol=1e-5)


def test_small_floats_are_joined_in_float32(tmp_path: Path) -> None:
    small = {name: x.astype(ml_dtypes.bfloat16) for name, x in LAYERS.items()}
    found = run_plan(tmp_path, small, step("sum_over(sum(w))", to="total"))
    assert found["total"].dtype == np.float32
    np.testing.assert_allclose(found["total"], sum(x.astype(np.float64).sum() for x in small.values()), rtol=1e-5)


def test_sets_run_under_jit_and_have_gradients() -> None:
    plan = bs.load({"transforms": [step("w / sqrt(sum_over(sum(w ** 2)))")]})
    made = jax.jit(plan.apply)(LAYERS)
    total = np.linalg.norm(everything())
    np.testing.assert_allclose(made["h.2.k"], LAYERS["h.2.k"] / total, rtol=1e-5)
    slope = jax.grad(lambda t: jax.numpy.sum(plan.apply(t)["h.0.q"]))(LAYERS)
    wanted = -LAYERS["h.1.q"] * LAYERS["h.0.q"].sum() / total**3
    np.testing.assert_allclose(slope["h.1.q"], wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("expr", "to", "code", "match"),
    [
        ("sum_over(w)", None, "shapes-differ", "the result is one of all matches"),
        ("sum_over(sum_over(w))", "x", "expression-value", "ranges over all matches of a step"),
        ("sum_over(w * ${i}) * ${i}", "x", "expression-value", "'${i}' is not the same for all matches: 0, 1, 2"),
        ("sum_over(w[:${i} + 1])", "x", "shapes-differ", "'h.0.k' gives f32[1,4], and 'h.1.k' f32[2,4]"),
        ("sum_over(w, axis=0)", "x", "expression-syntax", "'sum_over' has no argument 'axis'"),
    ],
)
def test_a_set_that_cannot_be_joined_is_refused(expr: str, to: str, code: str, match: str, tmp_path: Path) -> None:
    found = refused(problems(tmp_path, LAYERS, step(expr, to)))
    assert found[0] == code
    assert match in found[1]


def test_numbers_of_matches_are_looked_up_in_one_list_of_captures(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[str] = []
    captures = StepView.captures

    def count(self: StepView, ref: Any, key: str = "", **keys: Any) -> Any:
        asked.append(key)
        return captures(self, ref, key, **keys)

    monkeypatch.setattr(StepView, "captures", count)
    found = run_plan(tmp_path, LAYERS, step("w * ${i}"))
    assert all(np.array_equal(found[name], x * int(name.split(".")[1])) for name, x in LAYERS.items())
    assert asked.count("from") == 1


@pytest.mark.parametrize(("expr", "value"), [("3", 3), ("2 * 3 - 0.5", 5.5)])
def test_an_expression_that_names_no_tensor_is_a_scalar_of_its_own(expr: str, value: float) -> None:
    step = {"compute": {"from": {"w": "w"}, "expr": expr, "to": "out"}}
    found = bs.load({"transforms": [step]}).apply({"w": np.ones((2, 3), np.float32)})
    assert (found["out"].shape, float(found["out"])) == ((), value)


def test_an_expression_that_names_no_tensor_is_no_tensor_in_the_dtype_of_integers_either(tmp_path: Path) -> None:
    step = {"compute": {"from": {"w": "w"}, "expr": "3", "to": "out", "dtype": "int64"}}
    found = run_plan(tmp_path, {"w": np.ones((2, 3), np.float32)}, step)["out"]
    assert (found.shape, found.dtype, int(found)) == ((), np.int64, 3)
