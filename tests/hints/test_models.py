"""Hints about merges, layouts and adapters, done as they say: the model is converted or merged as it was meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.importers.mergekit import plan_of
from brainsurgery_jax.layout import library
from brainsurgery_jax.layout.adapters import DOWN, HEAD, UP
from brainsurgery_jax.select.pattern import compile_pattern
from brainsurgery_jax.select.ref import RefError
from brainsurgery_jax.select.template import compile_template
from tests import checkpoints
from tests.hints.calls import hint_of
from tests.hints.cases import quoted
from tests.importers.merges import put_config, put_models
from tests.layout.test_adapters import BASES, GEMMA, MINE, Base
from tests.layout.test_convert import LLAMA, llama, model

pytestmark = pytest.mark.usefixtures("here")

NORMS = (("self_attn.q_norm", 4), ("self_attn.k_norm", 4), ("pre_feedforward_layernorm", 6),
         ("post_feedforward_layernorm", 6))  # fmt: skip
Q = "model.layers.{}.self_attn.q_proj.weight"


# --- Merges -----------------------------------------------------------------------------------------------------------


def test_a_model_that_is_merged_with_itself_is_a_step_by_hand() -> None:
    held = put_models(Path())["a"]
    layers = [{"model": "a", "layer_range": [0, 1]}, {"model": "a", "layer_range": [1, 2]}]
    weights = [{**source, "parameters": {"weight": 0.5}} for source in layers]
    config = put_config(Path(), {"merge_method": "linear", "slices": [{"sources": weights}]})
    hint_of(lambda: plan_of(config.name), "Write the step by hand: `compute` takes any tensors by name.")
    sources = {"from": {"x": r"model\.layers\.0\.(.*)", "y": r"model.layers.1.\1"}, "expr": "(x + y) / 2"}
    bs.load({"inputs": ["a"], "transforms": [{"compute": sources}], "output": "out/"}).run(durable=False)
    made, mean = bs.open("out"), (held[Q.format(0)] + held[Q.format(1)]) / 2
    np.testing.assert_allclose(made[Q.format(0)], mean, rtol=1e-6)
    assert made[Q.format(1)].tolist() == held[Q.format(1)].tolist()


def tie(folder: str, says: dict[str, bool]) -> None:
    """Make a model one whose table of words is its output table, too."""
    config = json.loads(Path(folder, "config.json").read_text())
    del config["tie_word_embeddings"]
    Path(folder, "config.json").write_text(json.dumps(config | says))
    held = checkpoints.read(Path(folder, "model.safetensors"))
    del held["lm_head.weight"]
    checkpoints.write(Path(folder, "model.safetensors"), held)


@pytest.mark.parametrize("says", [{"tie_word_embeddings": True}, {}], ids=["tied", "by default"])
@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize(("unmatched", "fate"), [("keep", "is kept as it is"), ("drop", "takes no part in this step")])
def test_a_tied_model_gets_an_output_table_before_it_is_merged_with_one_that_has_one(
    order: list[str], says: dict[str, bool], unmatched: str, fate: str
) -> None:
    held = put_models(Path())
    tie("a", says)
    step = {"merge": {"method": "linear", "models": order, "unmatched": unmatched, "to": "m"}}
    plan: dict[str, Any] = {"inputs": [f"{x}::{x}" for x in order], "transforms": [step]}
    plan["output"] = {"path": "out/", "alias": "m"}
    (note,) = [d for d in bs.check(bs.load(plan)) if d.code == "unmatched"]
    assert note.severity == "note"
    assert f"'lm_head.weight' of 'b' {fate}: 'a' has no 'lm_head.weight' because it is tied" in note.message
    plan["transforms"] = [yaml.safe_load(quoted(note.hint)[0]), step]
    assert not [d for d in bs.check(bs.load(plan)) if d.code == "unmatched"]
    bs.load(plan).run(durable=False)
    mean = (held["a"]["model.embed_tokens.weight"] + held["b"]["lm_head.weight"]) / 2
    np.testing.assert_allclose(bs.open("out")["lm_head.weight"], mean, atol=1e-6)


def test_an_output_table_is_not_called_tied_where_its_model_says_otherwise_or_it_is_another_tensor() -> None:
    put_models(Path())
    tie("a", {"tie_word_embeddings": False})
    step = {"merge": {"method": "linear", "models": ["a", "b"], "unmatched": "keep", "to": "m"}}
    plan: dict[str, Any] = {"inputs": ["a::a", "b::b"], "transforms": [step]}
    plan["output"] = {"path": "out/", "alias": "m"}
    assert not [d for d in bs.check(bs.load(plan)) if d.code == "unmatched"]
    tie("b", {})
    plan["transforms"] = [{"delete": {"target": "a::model.norm.weight"}}, step]
    assert not [d for d in bs.check(bs.load(plan)) if d.code == "unmatched"]


def test_a_model_that_is_not_here_is_fetched_and_imported_again() -> None:
    held = put_models(Path())["a"]
    slices = [{"sources": [{"model": "org/one", "layer_range": [0, 2]}]}]
    config = put_config(Path(), {"merge_method": "passthrough", "slices": slices})
    hint = hint_of(lambda: plan_of(config.name), "Download it, then import again: ")
    command = quoted(hint)[0].split()
    assert command[:2] == ["hf", "download"]
    shutil.copytree("a", command[command.index("--local-dir") + 1])
    Path("plan.yaml").write_text(plan_of(config.name))
    bs.load("plan.yaml").run(durable=False)
    assert bs.open("merged")[Q.format(1)].tolist() == held[Q.format(1)].tolist()


# --- Layouts ----------------------------------------------------------------------------------------------------------


def test_a_model_of_several_layouts_names_one() -> None:
    source = model(Path("hf"), llama(), LLAMA)
    hint = hint_of(lambda: bs.convert(source, "out", to="orbax", durable=False), "Choose with ")
    for layout in ("maxtext-llama", "tunix-llama", "flax"):
        assert layout in hint
        options: dict[str, Any] = {"options": {"pairs": False}} if layout.startswith("maxtext") else {}
        bs.convert(source, f"to {layout}", to="orbax", layout=layout, durable=False, **options)
        assert any("embed" in name for name in bs.open(f"to {layout}"))
    assert "none only changes the format" in hint
    bs.convert(source, "plain", to="orbax", layout="none", durable=False)
    assert set(bs.open("plain")) == set(llama())


def test_a_layout_is_called_like_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_folder", Path)
    library._load_packaged.cache_clear()
    Path("ours.yaml").write_text(MINE)
    hint = hint_of(lambda: library.load_layout("ours"), "Write `layout: ours`.")
    Path("ours.yaml").write_text(MINE.replace("layout: mine", quoted(hint)[0]))
    assert library.load_layout("ours").name == "ours"
    library._load_packaged.cache_clear()


# --- Adapters ---------------------------------------------------------------------------------------------------------


def convert(tensors: Any, config: Any, path: str, **wishes: Any) -> Any:
    Path("config.json").write_text(json.dumps(config))
    checkpoints.write(f"{path}.safetensors", tensors)
    bs.convert(f"{path}.safetensors", f"{path}.out.safetensors", durable=False, **wishes)
    return bs.open(f"{path}.out.safetensors")


@pytest.mark.parametrize("way", ["merge", "leave out"])
def test_an_adapter_that_has_no_form_is_merged_or_left_out(way: str) -> None:
    layer = "model.layers.0.self_attn"
    base = Base(llama(), GEMMA, [f"{layer}.k_proj", f"{layer}.v_proj", f"{layer}.q_proj"])
    wishes = {"layout": "tunix-gemma3"}
    hint = hint_of(lambda: convert(base.factors(), GEMMA, "all", **wishes), "Merge the adapter into its base")
    assert "or remove these modules from it" in hint
    if way == "merge":
        norms = {f"model.layers.{i}.{name}.weight": np.ones(size, np.float32) for i in (0, 1) for name, size in NORMS}
        made, plain = (convert({**w, **norms}, GEMMA, n, **wishes) for w, n in
                       ((base.merged(), "merged"), (llama(), "base")))  # fmt: skip
        changed = {name for name in plain if made[name].tobytes() != plain[name].tobytes()}
        assert changed == {f"layers.0.attn.{name}.w" for name in ("kv_einsum", "q_einsum")}
    else:
        rest = {name: x for name, x in base.factors().items() if "q_proj" in name}
        assert len(convert(rest, GEMMA, "rest", **wishes)) == 2


@pytest.mark.parametrize("way", ["zeros", "apart"])
def test_layers_without_factors_get_zeros_or_stay_apart(way: str) -> None:
    base = BASES["one layer"]
    wishes: dict[str, Any] = {"layout": "maxtext", "options": {"pairs": False}}
    factors = base.factors()
    hint = hint_of(lambda: convert(factors, base.config, "one", **wishes), "Fill it with zeros; or keep layers apart")
    if way == "apart":
        key, _, value = quoted(hint)[-1].partition(": ")
        made = convert(
            factors, base.config, "apart", **{**wishes, "options": {"pairs": False, key: yaml.safe_load(value)}}
        )
        assert len(made) == len(factors)
        return
    zeros = {n.replace("layers.1", "layers.0"): np.zeros_like(x) for n, x in factors.items()}
    made = convert(factors | zeros, base.config, "two", **wishes)
    (down,) = (made[n] for n in made if n.endswith("query.kernel_lora_a.value"))
    stem = HEAD + "model.layers.1.self_attn.q_proj"
    assert sorted(np.abs(down[down != 0]).ravel()) == sorted(np.abs(factors[stem + DOWN]).ravel())
    assert stem + UP in factors


# --- Names ------------------------------------------------------------------------------------------------------------


def test_an_empty_template_gets_the_name_of_the_destination() -> None:
    with pytest.raises(RefError) as refused:
        compile_template("", compile_pattern("w"))
    assert refused.value.hint == "Write the name of the destination."
    assert compile_template("u", compile_pattern("w")).source == "u"
    with pytest.raises(PlanError):
        bs.load({"inputs": ["m.safetensors"], "transforms": [{"copy": {"from": "w", "to": ""}}]}).run()
