"""Options that change numbers: settled by config.json, by what an earlier conversion noted, or by the user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.layout.library import load_layout
from brainsurgery_jax.layout.parse import parse_layout
from tests.checkpoints import bits, read, write
from tests.layout.test_convert import LLAMA, convert, llama, model

DEFAULT = {k: v for k, v in LLAMA.items() if k != "rope_scaling"}
OPEN = r"maxtext-llama: config.json does not determine the option 'pairs', which changes numbers"
QUERY = "params.params.decoder.layers.self_attention.query.kernel"


def query(folder: Path, config: Mapping[str, Any], **wishes: Any) -> np.ndarray:
    folder.mkdir()
    source = model(folder / "hf", llama(), config)
    return convert(source, folder / "m.safetensors", layout="maxtext", **wishes)[QUERY]


UNSETTLED = {
    "no word": {},
    "default": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "null": {"rope_scaling": None},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
}


@pytest.mark.parametrize("rope", UNSETTLED)
def test_rotary_pairs_are_asked_for_where_config_does_not_settle_them(rope: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=OPEN) as caught:
        query(tmp_path / "a", DEFAULT | UNSETTLED[rope])
    (found,) = caught.value.diagnostics
    assert (found.code, "`options={'pairs': True}` or `options={'pairs': False}`" in found.hint) == (
        "layout-open",
        True,
    )
    assert not (tmp_path / "a" / "m.safetensors").exists()
    neighbours, halves = (
        query(tmp_path / str(p), DEFAULT | UNSETTLED[rope], options={"pairs": p}) for p in (True, False)
    )
    assert not np.array_equal(neighbours, halves)


@pytest.mark.parametrize(
    "rope", [{"rope_scaling": {"rope_type": "llama3"}}, {"rope_parameters": {"rope_type": "llama3"}}]
)
def test_the_rotary_embeddings_of_llama_3_1_settle_the_pairs(rope: dict[str, Any], tmp_path: Path) -> None:
    found = query(tmp_path / "a", DEFAULT | rope)
    assert bits(found) == bits(query(tmp_path / "b", DEFAULT, options={"pairs": True}))


def test_mistral_never_has_pairs(tmp_path: Path) -> None:
    found = query(tmp_path / "a", DEFAULT | {"model_type": "mistral"})
    assert bits(found) == bits(query(tmp_path / "b", DEFAULT, options={"pairs": False}))


def test_what_the_user_says_counts_before_what_config_says(tmp_path: Path) -> None:
    found = query(tmp_path / "a", LLAMA, options={"pairs": False})
    assert bits(found) == bits(query(tmp_path / "b", DEFAULT, options={"pairs": False}))


@pytest.mark.parametrize(("asked", "expected"), [({}, False), ({"pairs": True}, False), ({"pairs": False}, True)])
def test_an_option_that_differs_from_what_was_noted_is_remarked(
    asked: dict[str, bool], expected: bool, tmp_path: Path
) -> None:
    source = model(tmp_path / "hf", llama(), DEFAULT)
    bs.convert(source, str(tmp_path / "there"), layout="maxtext", options={"pairs": True}, durable=False)
    said = bs.convert(str(tmp_path / "there"), str(tmp_path / "back"), options=asked, durable=False).said
    remark = "the source notes that it was made with pairs=true; it is read with pairs=false, as asked for"
    assert (remark in said) is expected


@pytest.mark.parametrize("pairs", [True, False])
def test_the_way_back_takes_what_was_noted(pairs: bool, tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), DEFAULT)
    bs.convert(source, str(tmp_path / "there"), layout="maxtext", options={"pairs": pairs}, durable=False)
    bs.convert(str(tmp_path / "there"), str(tmp_path / "back"), durable=False)
    back = read(tmp_path / "back" / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    assert bits(back[name]) == bits(llama()[name])


@pytest.mark.parametrize("scan", [True, False])
def test_the_way_back_of_a_tree_that_others_saved_asks_too(scan: bool, tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), DEFAULT)
    convert(source, tmp_path / "m.safetensors", layout="maxtext", scan=scan, options={"pairs": True})
    raw = str(write(tmp_path / "bare.safetensors", read(tmp_path / "m.safetensors")))
    (tmp_path / "config.json").write_text(json.dumps(DEFAULT))
    wishes: dict[str, Any] = {"layout": "maxtext", "to": "safetensors"}
    with pytest.raises(PlanError, match=OPEN):
        convert(raw, tmp_path / "back.safetensors", **wishes)
    found = convert(raw, tmp_path / "back.safetensors", **wishes, options={"pairs": True})
    name = "model.layers.1.self_attn.k_proj.weight"
    assert bits(found[name]) == bits(llama()[name])


def test_a_plan_and_a_program_are_asked_as_convert_is(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), DEFAULT)
    step = {"name": "maxtext", "config": f"{source}/config.json"}
    (found,) = bs.check(bs.load({"inputs": [source], "transforms": [{"layout": step}]}))
    assert (found.code, found.severity) == ("layout-open", "error")
    with pytest.raises(PlanError, match=OPEN):
        bs.open(source).to_linen(layout="maxtext-llama")
    assert "params" in bs.open(source).to_linen(layout="maxtext-llama", options={"pairs": False})


def test_gemma_2_divides_the_query_by_the_scale_that_config_names(tmp_path: Path) -> None:
    config = DEFAULT | {"model_type": "gemma2", "query_pre_attn_scalar": 9}
    gemma = llama() | {
        f"model.layers.{i}.{name}_feedforward_layernorm.weight": np.ones(6, np.float32)
        for i in range(2)
        for name in ("pre", "post")
    }
    found = convert(model(tmp_path / "hf", gemma, config), tmp_path / "m.safetensors", layout="maxtext")
    query = found["params.params.decoder.layers.self_attention_local.query.kernel"][:, 0]
    expected = gemma["model.layers.0.self_attn.q_proj.weight"].T.reshape(6, 2, 4) / 3
    np.testing.assert_allclose(query, expected, rtol=1e-6)


# --- Writing one ------------------------------------------------------------------------------------------------------

CHOICE = """
layout: mine
doc: mine
dims: {kind: kind}
options: {turn: CHOICE}
rules: [{hf: w, to: w, shape: [2, 2], ops: [transpose], when: turn}, {hf: w, to: w, shape: [2, 2], unless: turn}]
example: {kind: a}
"""
GOOD = "{known: [{when: kind == 'a', is: true}, {unless: kind == 'b', is: false}], ask: Which way is up.}"


def test_the_first_condition_that_holds_settles_an_option() -> None:
    layout = parse_layout(CHOICE.replace("CHOICE", GOOD), "mine.yaml")
    assert ([value for _, value in layout.choices["turn"].known], layout.defaults) == ([True, False], {})


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("{known: [{when: kind == 'a', is: true}]}", "options.turn: expected `known` and `ask`"),
        ("{known: [], ask: x}", "options.turn: expected `known` and `ask`"),
        ("{known: [{is: true}], ask: x}", "options.turn.known: expected a condition and `is`"),
        ("{known: [{when: kind == 'a'}], ask: x}", "options.turn.known: expected a condition and `is`"),
        ("{known: [3], ask: x}", "options.turn.known: expected a condition and `is`"),
        ("{known: [{when: size == 2, is: true}], ask: x}", "when: unknown name 'size'"),
        ("{knwon: [{when: kind == 'a', is: true}], ask: x}", "options.turn: unknown key 'knwon'"),
    ],
)
def test_a_choice_that_is_none_is_a_mistake_of_the_layout(choice: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_layout(CHOICE.replace("CHOICE", choice), "mine.yaml")
    assert any(message in d.message for d in caught.value.diagnostics)


def test_only_options_that_change_numbers_have_no_default() -> None:
    assert load_layout("maxtext-llama").defaults == {"tree": "linen", "scan": True}
    assert set(load_layout("maxtext-llama").choices) == {"pairs"}
