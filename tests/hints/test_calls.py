"""Hints of calls in Python, done as they say: what comes out is what was meant, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from tests import checkpoints
from tests.hints.calls import DOUBLE, GPT2, WTE, W, gpt2, hint_of, run
from tests.hints.cases import quoted

pytestmark = pytest.mark.usefixtures("here")

PLAN: dict[str, Any] = {"inputs": ["m::m.safetensors"]}


# --- Plans on trees ---------------------------------------------------------------------------------------------------


def applied(*transforms: Any, tree: Any = None, more: Any = None, **given: Any) -> Any:
    plan = {**PLAN, "transforms": list(transforms), **(more or {})}
    return bs.load(plan).apply({"w": W} if tree is None else tree, **given)


def test_names_shapes_and_dtypes_are_made_those_of_like() -> None:
    like = {"x": np.zeros(4, np.float16)}
    hint_of(lambda: applied(DOUBLE, like=like), 'or keep what `like` has: `missing="keep"`.')
    hint_of(lambda: applied(tree={"x": W}, like=like), "Reshape or cast in the plan until")
    spare = {"x": np.zeros(4, np.float16), "w": W}
    hint_of(lambda: applied(DOUBLE, tree=spare, like=like), 'or leave it out: `extra="ignore"`.')
    assert applied(DOUBLE, tree=spare, like=like, extra="ignore").keys() == {"x"}
    assert applied(DOUBLE, like={"w": W, "x": W}, missing="keep")["x"] is W
    mends = [
        {"move": {"from": "w", "to": "x"}},
        {"delete": {"target": "v"}},
        {"cast_": {"target": "x", "to": "float16"}},
    ]
    made = applied(DOUBLE, *mends, tree={"w": W, "v": W}, like=like)
    assert made["x"].dtype == np.float16
    assert made["x"].tolist() == [0, 2, 4, 6]


def test_a_name_that_a_leaf_has_is_left_to_it() -> None:
    tree = {"w": W, "n": 3}
    hint_of(lambda: applied({"copy": {"from": "w", "to": "n"}}, tree=tree), "Choose another name.")
    made = applied({"copy": {"from": "w", "to": "n2"}}, tree=tree)
    assert (made["n"], made["n2"].tolist()) == (3, W.tolist())


def test_a_leaf_above_another_is_renamed() -> None:
    hint_of(lambda: applied({"copy": {"from": "w", "to": "w.x"}}), "Rename one of them")
    made = applied({"copy": {"from": "w", "to": "u.x"}})
    assert (made["w"].tolist(), made["u"]["x"].tolist()) == (W.tolist(), W.tolist())


def test_two_leaves_of_one_name_are_told_apart() -> None:
    hint_of(lambda: applied(tree={"a.b": W, "a": {"b": W}}), "Rename one of them: a key with a dot")
    assert set(applied(tree={"a.c": W, "a": {"b": W}})["a"]) >= {"b"}


def test_a_tree_is_given_under_the_name_of_an_input() -> None:
    hint_of(lambda: bs.load(PLAN).apply(x={"w": W}), "Inputs of the plan: m.")
    assert bs.load(PLAN).apply(m={"w": W})["w"].tolist() == W.tolist()


def test_what_a_step_loads_is_given_as_a_tree() -> None:
    loaded = bs.load({**PLAN, "transforms": [{"load": {"path": "b.safetensors", "alias": "b"}}]})
    hint = hint_of(lambda: jax.jit(loaded.apply)({"w": W}), "besides the others, and give it")
    inputs, call = quoted(hint)
    assert call == "plan.apply(tree, b=other_tree)"
    plan = {
        "inputs": [*PLAN["inputs"], *yaml.safe_load(inputs)["inputs"]],
        "transforms": [{"copy": {"from": "b::w", "to": "m::u"}}],
    }
    assert bs.load(plan).apply({"w": W}, b={"w": W + 1})["u"].tolist() == (W + 1).tolist()


def test_the_alias_that_is_returned_is_said() -> None:
    steps = [{"scale_": {"target": "m::w", "by": 2}}, {"scale_": {"target": "b::w", "by": 3}}]
    plan = {"inputs": ["m::m.safetensors", "b::m.safetensors"], "transforms": steps}
    hint = hint_of(lambda: bs.load(plan).apply({"w": W}, b={"w": W}), "Name it in the plan")
    mended = {**plan, **yaml.safe_load(quoted(hint)[0])}
    assert mended["output"] == {"path": "out.safetensors", "alias": "m"}
    assert bs.load(mended).apply({"w": W}, b={"w": W})["w"].tolist() == (W * 2).tolist()


@pytest.mark.parametrize("way", ["a number", "concrete arrays"])
def test_a_rank_that_values_decide_on_is_a_number_or_is_found_in_concrete_arrays(way: str) -> None:
    def made(rank: Any, leaf: Any) -> Any:
        step = {"phlora": {"target": "(a)", "target_a": r"\1.A", "target_b": r"\1.B", "rank": rank}}
        return applied(step, tree={"a": leaf})["a"]["A"].shape

    abstract, energy = jax.ShapeDtypeStruct((2, 2), np.float32), {"energy": 0.9}
    hint = hint_of(lambda: made(energy, abstract), "Give a number instead, such as")
    assert quoted(hint) == ["rank: 16"]
    assert (made(1, abstract) if way == "a number" else made(energy, np.diag([9, 1]).astype(np.float32))) == (1, 2)


ASSERT = {"assert": {"equal": {"left": "w", "right": "v"}}}


@pytest.mark.parametrize(("checks", "verdicts"), [("return", [True]), ("skip", None)])
def test_an_assert_on_traced_values_is_returned_or_skipped(checks: Any, verdicts: Any) -> None:
    plan, tree = bs.load({**PLAN, "transforms": [ASSERT]}), {"w": W, "v": W}
    hint = hint_of(lambda: jax.jit(plan.apply)(tree), "to get the verdicts as arrays")
    assert f'checks="{checks}"' in hint
    made = jax.jit(lambda t: plan.apply(t, checks=checks))(tree)
    tree_made, told = made if checks == "return" else (made, None)
    assert tree_made["w"].tolist() == W.tolist()
    assert told is None or [bool(v) for v in told.values()] == verdicts


@pytest.mark.parametrize("way", ["shape", "without", "outside"])
def test_values_are_not_printed_under_a_trace(way: str) -> None:
    def apply(*steps: Any, wrap: Any = jax.jit) -> Any:
        return wrap(bs.load({**PLAN, "transforms": [*steps, DOUBLE]}).apply)({"w": W})["w"].tolist()

    dump = {"dump": {"target": "w", "verbosity": "stat"}}
    hint = hint_of(lambda: apply(dump), "leave the step out, or apply the plan outside of `jax.jit`")
    shape = {"dump": {"target": "w", **dict([quoted(hint)[0].split(": ")])}}
    ways = {"shape": lambda: apply(shape), "without": apply, "outside": lambda: apply(dump, wrap=lambda f: f)}
    assert ways[way]() == [0, 2, 4, 6]


# --- Trees and files --------------------------------------------------------------------------------------------------


def test_what_is_no_array_is_left_out_or_made_one() -> None:
    hint_of(lambda: bs.save("out.npz", {"n": {3}, "w": W}, durable=False), "make it an array: `jnp.asarray(...)`")
    bs.save("out.npz", {"n": jnp.asarray(3), "w": W}, durable=False)
    assert {name: array.tolist() for name, array in bs.open("out.npz").items()} == {"n": 3, "w": W.tolist()}
    bs.save("less.npz", {"w": W}, durable=False)
    assert list(bs.open("less.npz")) == ["w"]


@pytest.mark.parametrize("devices", [0, "gpu"])
def test_devices_left_out_are_all(devices: Any) -> None:
    hint_of(lambda: run(DOUBLE, devices=devices), "Leave it out to use all there are.")
    assert run(DOUBLE)["w"] == [0, 2, 4, 6]


def test_more_memory_is_given() -> None:
    assert "`memory=`" in hint_of(lambda: run(DOUBLE, memory=1), "Give more")
    assert run(DOUBLE, memory=1 << 30)["w"] == [0, 2, 4, 6]


# --- Conversions ------------------------------------------------------------------------------------------------------


def converted(source: str, out: str = "out", **wishes: Any) -> Any:
    bs.convert(source, out, durable=False, **wishes)
    return bs.open(out)


def test_a_dtype_that_there_is_not_is_chosen_from_the_list() -> None:
    source = gpt2()
    hint = hint_of(lambda: converted(source, dtype="float17"), "Floating dtypes: ")
    assert "float16" in hint or "f16" in hint
    made = converted(source, layout="none", dtype="float16", to="safetensors")
    assert made["wte.weight"].tobytes() == WTE.astype(np.float16).tobytes()


def test_integers_are_cast_in_a_plan_that_scales_first() -> None:
    source = gpt2()
    hint_of(lambda: converted(source, layout="none", dtype="int8"), "Cast integers in a plan, where you can")
    scaled = {"scale_": {"target": r"wte\.weight", "by": 3}}
    made = run(scaled, {"cast_": {"target": r"wte\.weight", "to": "int8"}}, inputs=f"m::{source}")
    assert made["wte.weight"] == np.ones((5, 2)).tolist()


def coded() -> str:
    """A tiny GPT-2 whose table of words is codes with a scale."""
    shutil.rmtree("hf", ignore_errors=True)
    source = gpt2()
    held = checkpoints.read(Path(source, "model.safetensors"))
    held |= {"wte.weight": np.ones((5, 2), ml_dtypes.float8_e4m3fn), "wte.weight_scale": np.asarray(1 / 3, np.float32)}
    checkpoints.write(Path(source, "model.safetensors"), held)
    return source


PLAIN = {"layout": "none", "to": "safetensors"}


@pytest.mark.parametrize("wishes", [{"layout": "flax-gpt2"}, {**PLAIN, "dtype": "float16"}])
def test_codes_are_made_floats(wishes: dict[str, str]) -> None:
    hint = hint_of(lambda: converted(coded(), **wishes), "Make floats of them: ")
    name, _, value = quoted(hint)[0].partition("=")
    made = converted("hf", **{name: value.strip("'")}, **wishes)
    table = np.asarray(made["params.wte.embedding" if "dtype" not in wishes else "wte.weight"])
    np.testing.assert_allclose(table.astype(np.float32), WTE, rtol=2**-8)


def test_floats_of_codes_are_wide_enough() -> None:
    hint = hint_of(lambda: converted(coded(), layout="flax-gpt2", dequantize="int8"), "Make bfloat16, float16,")
    dtype = hint.split()[1].removesuffix(",")
    made = converted("hf", layout="flax-gpt2", dequantize=dtype)
    np.testing.assert_allclose(np.asarray(made["params.wte.embedding"]).astype(np.float32), WTE, rtol=2**-8)


@pytest.mark.parametrize("wishes", [{"overflow": "saturate"}, {"dtype": "float16", "overflow": "wrap"}])
def test_an_overflow_has_a_dtype(wishes: dict[str, str]) -> None:
    source = gpt2()
    plain = {"layout": "none", "to": "safetensors"}
    hint = hint_of(lambda: converted(source, **plain, **wishes), "Give a dtype, and an overflow: ")
    treatment = hint.rpartition(" ")[2].removesuffix(".")
    made = converted(source, **plain, dtype="float16", overflow=treatment)
    assert made["wte.weight"].tobytes() == WTE.astype(np.float16).tobytes()


def test_what_is_replaced_cannot_be_verified() -> None:
    source = gpt2()
    before = Path(source, "model.safetensors").read_bytes()
    wishes = {"layout": "none", "to": "safetensors", "overwrite": True}
    hint_of(lambda: converted(source, source, verify=True, **wishes), "Write to another path, or omit `verify`.")
    assert Path(source, "model.safetensors").read_bytes() == before
    assert converted(source, "other", verify=True, **wishes)["wte.weight"].tobytes() == WTE.tobytes()
    assert converted(source, source, **wishes)["wte.weight"].tobytes() == WTE.tobytes()


def test_a_layout_is_that_of_the_model() -> None:
    hint = hint_of(lambda: converted(gpt2(), layout="tunix-llama"), "Layouts for this model: ")
    made = converted("hf", layout=hint.rpartition(" ")[2].removesuffix("."))
    assert np.asarray(made["params.wte.embedding"]).tobytes() == WTE.tobytes()


@pytest.mark.parametrize("wish", [{"layout": "tunix"}, {"to": "orbax"}])
def test_a_model_without_config_keeps_its_names_by_flax(wish: dict[str, str]) -> None:
    hint = hint_of(lambda: converted(gpt2(config=None), **wish), "Give the model's config.json with")
    name, _, value = quoted(hint)[1].partition("=")
    made = converted("hf", **{name: value.strip("'")})
    assert made["params.wte.weight"].tobytes() == WTE.tobytes()


def test_a_config_elsewhere_is_named() -> None:
    Path("c.json").write_text(json.dumps(GPT2))
    hint = hint_of(lambda: converted(gpt2(config=None), layout="flax-gpt2"), "the hub has it beside the model")
    made = converted("hf", layout="flax-gpt2", **{quoted(hint)[0].partition("=")[0]: "c.json"})
    assert made["params.wte.embedding"].tobytes() == WTE.tobytes()


@pytest.mark.parametrize(("at", "name"), [(0, "params.wte.weight"), (1, "wte.weight")])
def test_a_model_without_a_layout_keeps_its_names(at: int, name: str) -> None:
    source = gpt2(config={"model_type": "strange"})
    hint = hint_of(lambda: converted(source, to="orbax"), "keeps all names and shapes")
    key, _, value = quoted(hint)[at].partition("=")
    assert converted(source, to="orbax", **{key: value.strip("'")})[name].tobytes() == WTE.tobytes()


def test_a_layout_in_a_plan_gets_the_config_of_its_model() -> None:
    source = gpt2(config=None)
    Path("c.json").write_text(json.dumps(GPT2))
    hint = hint_of(lambda: run({"layout": {"name": "flax-gpt2"}}, inputs=f"m::{source}"), "Give its path")
    key = quoted(hint)[0].partition(":")[0]
    for config in ("c.json", GPT2):
        output = {"path": "out.safetensors", "overwrite": True}
        made = run({"layout": {"name": "flax-gpt2", key: config}}, inputs=f"m::{source}", output=output)
        assert made["params.wte.embedding"] == WTE.tolist()
