"""`vocab`, `tie`, `untie`, `fuse` and `unfuse`, judged by the models that `transformers` makes of what they write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.structure.judged import TOKENS, assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

MODELS = ("gpt2", "llama", "llama-tied", "gemma2", "mixtral", "gpt_neox", "bert", "t5", "whisper", "deepseek_v3")
WORDS = 91


@pytest.mark.parametrize("rows", ["mean", "zero"])
@pytest.mark.parametrize("name", MODELS)
def test_more_words_leave_the_logits_of_the_old_ones_what_they_were(name: str, rows: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"multiple_of": 32, "rows": rows}})
    found = load(tmp_path / "out")
    assert found.config.vocab_size == 96
    made = logits(found)
    assert_same(made[..., :WORDS], logits(model))
    if rows == "zero":
        assert torch.equal(made[..., WORDS:], torch.zeros_like(made[..., WORDS:]))
    else:
        table, old = found.get_input_embeddings().weight, model.get_input_embeddings().weight
        assert_same(table[WORDS:], old.mean(0).expand(5, -1))


@pytest.mark.parametrize("name", MODELS)
def test_words_change_places(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    order = torch.randperm(WORDS, generator=torch.Generator().manual_seed(3))
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"order": order.tolist()}})
    found = load(tmp_path / "out")
    back = torch.argsort(order)
    with torch.no_grad():
        old, new = model.get_input_embeddings().weight, found.get_input_embeddings().weight
        assert torch.equal(old[order], new)
    places = {int(word): at for at, word in enumerate(order)}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        before = getattr(model.config, key, None)
        if isinstance(before, int) and before < WORDS:
            assert getattr(found.config, key) == places[before]
    if name not in ("t5", "whisper"):
        with torch.no_grad():
            made = found(input_ids=back[TOKENS]).logits
        assert_same(made[..., back], logits(model))


def test_fewer_words_keep_the_first_ones(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"size": 90, "multiple_of": 2}})
    assert_same(logits(load(tmp_path / "out")), logits(model)[..., :90])


def test_new_rows_come_from_another_checkpoint(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "whole")
    rows = {name: torch.randn(5, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(rows, tmp_path / "rows.safetensors")
    asked = {"vocab": {"size": 96, "rows": "rows", "alias": "model"}}
    edit(tmp_path / "whole", tmp_path / "out", asked, rows=tmp_path / "rows.safetensors")
    found = load(tmp_path / "out")
    assert torch.equal(found.lm_head.weight[WORDS:], rows["lm_head.weight"])
    assert torch.equal(found.model.embed_tokens.weight[WORDS:], rows["model.embed_tokens.weight"])
    assert_same(logits(found)[..., :WORDS], logits(model))


def test_a_special_word_that_is_gone_is_noted(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    notes = edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"order": list(range(2, WORDS))}})
    assert [n.message for n in notes if "bos_token_id" in n.message] == [
        f"vocab.order: bos_token_id 1 of {file} is none of the words that stay: it is null"
        for file in ("config.json", "generation_config.json")
    ]
    found = load(tmp_path / "out")
    assert (found.config.eos_token_id, found.config.bos_token_id) == (0, None)
    assert (found.generation_config.eos_token_id, found.generation_config.bos_token_id) == (0, None)


def test_a_list_of_special_words_loses_those_that_are_gone(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole", eos_token_id=[2, 1, 5])
    notes = edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"order": [0, 5, 2]}})
    assert load(tmp_path / "out").config.eos_token_id == [2, 1]
    assert any("eos_token_id [2, 1, 5] of config.json has words that do not stay" in n.message for n in notes)


def test_words_that_stand_for_images_get_their_new_numbers(tmp_path: Path) -> None:
    make("llava", tmp_path / "whole", image_token_index=7)
    order = [*range(1, WORDS), 0]
    edit(tmp_path / "whole", tmp_path / "out", {"vocab": {"order": order, "part": "text_config"}})
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert [config[key] for key in ("image_token_id", "image_token_index") if key in config] == [6]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_the_note_on_a_special_word_that_is_gone_says_what_sets_it(file: str, tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    step = {"vocab": {"order": list(range(2, WORDS))}}
    notes = edit(tmp_path / "whole", tmp_path / "out", step)
    (hint,) = [n.hint for n in notes if f"bos_token_id 1 of {file}" in n.message]
    named = "" if file == "config.json" else f"file: {file}, "
    text = f"config: {{alias: model, {named}patch: {{bos_token_id: NUMBER}}}}"
    assert hint == f"Set it by a step behind this: `{text}`."
    edit(tmp_path / "whole", tmp_path / "again", step, yaml.safe_load(text.replace("NUMBER", "7")))
    assert json.loads((tmp_path / "again" / file).read_text())["bos_token_id"] == 7


def test_rows_of_another_checkpoint_are_as_many_as_are_new(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    rows = {name: torch.randn(90, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(rows, tmp_path / "rows.safetensors")
    asked, more = {"vocab": {"multiple_of": 32, "rows": "rows", "alias": "model"}}, tmp_path / "rows.safetensors"
    why = r"weight' of 'rows' has 90 rows, and 5 are put behind the 91 that there are"
    with pytest.raises(PlanError, match=why) as told:
        edit(tmp_path / "whole", tmp_path / "out", asked, rows=more)
    assert "a step `take_` before this cuts larger ones down." in str(told.value)
    cut = {"take_": {"target": "rows::.*", "indices": [*range(85, 90)], "dim": 0}}
    edit(tmp_path / "whole", tmp_path / "out", cut, asked, rows=more)
    assert torch.equal(load(tmp_path / "out").lm_head.weight[WORDS:], rows["lm_head.weight"][85:])


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "give one of size, multiple_of, order and tokenizer"),
        ({"order": [0, 91]}, "there is no word 91: the model has 91"),
    ],
)
def test_words_that_there_are_not_are_refused(asked: dict[str, Any], why: str, tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    with pytest.raises(PlanError, match=re.escape(why)):
        edit(tmp_path / "whole", tmp_path / "out", {"vocab": asked})


def test_a_tensor_that_may_have_a_row_for_each_word_and_is_not_known_is_refused(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    steps = {"copy": {"from": r"lm_head\.weight", "to": "extra.table"}}, {"vocab": {"size": 96}}
    with pytest.raises(PlanError, match=r"'extra\.table' may have a row for each of 91 words"):
        edit(tmp_path / "whole", tmp_path / "out", *steps)


# --- Tied words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "gemma2", "whisper"])
def test_words_are_untied_and_tied_again(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "apart", {"untie": {}})
    apart = load(tmp_path / "apart")
    assert apart.config.tie_word_embeddings is False
    assert apart.get_output_embeddings().weight.data_ptr() != apart.get_input_embeddings().weight.data_ptr()
    assert_same(logits(apart), logits(model))
    edit(tmp_path / "apart", tmp_path / "again", {"tie": {}})
    assert_same(logits(load(tmp_path / "again")), logits(model))
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "again"))
    assert before.keys() == after.keys()


def test_words_that_differ_are_not_tied_unless_that_is_meant(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    with pytest.raises(PlanError, match=r"tie: assert\.identical"):
        edit(tmp_path / "whole", tmp_path / "out", {"tie": {}})
    edit(tmp_path / "whole", tmp_path / "out", {"tie": {"replace": True}})
    assert load(tmp_path / "out").config.tie_word_embeddings is True


def test_what_is_tied_or_has_no_words_is_refused(tmp_path: Path) -> None:
    make("llama-tied", tmp_path / "tied")
    make("llama", tmp_path / "apart")
    make("vit", tmp_path / "images")
    make("t5", tmp_path / "scaled")  # whose flag says whether logits are scaled; words are tied in any case
    for name, step, why in (
        ("tied", "tie", "are tied already"), ("apart", "untie", "are not tied"),
        ("images", "tie", "have no words to tie"),
        ("scaled", "untie", "how models of the family t5 tie words is not known"),
    ):  # fmt: skip
        with pytest.raises(PlanError, match=why):
            edit(tmp_path / name, tmp_path / "out", {step: {}})


# --- Fused tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mistral", "llama"])
def test_a_fused_model_is_one_of_the_class_phi3_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "fused", {"fuse": {}})
    found = load(tmp_path / "fused")
    assert type(found).__name__ == "Phi3ForCausalLM"
    assert_same(logits(found), logits(model))
    edit(tmp_path / "fused", tmp_path / "again", {"unfuse": {}})
    again = load(tmp_path / "again")
    assert type(again).__name__ == "MistralForCausalLM"
    assert_same(logits(again), logits(model))
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_heads_of_gpt_neox_lie_beside_each_other(tmp_path: Path) -> None:
    model = make("gpt_neox", tmp_path / "whole")
    # No class of transformers has these tensors, so that the output is not asked to be consistent.
    plan = {"inputs": [str(tmp_path / "whole")], "transforms": [{"unfuse": {}}], "output": f"{tmp_path / 'cut'}/"}
    bs.load(plan).run(durable=False)
    cut = load_file(tmp_path / "cut/model.safetensors")
    layer = model.gpt_neox.layers[1].attention
    inside = torch.randn(2, 5, 32)
    query, key, value = layer.query_key_value(inside).view(2, 5, 4, 3 * 8).chunk(3, dim=-1)
    for name, wanted in (("query", query), ("key", key), ("value", value)):
        weight, bias = (cut[f"gpt_neox.layers.1.attention.{name}.{kind}"] for kind in ("weight", "bias"))
        assert_same((inside @ weight.T + bias).view(2, 5, 4, 8), wanted)
    assert not any("query_key_value" in name for name in cut)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2"])
def test_what_is_cut_and_joined_again_has_the_same_bits(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    notes = edit(tmp_path / "whole", tmp_path / "again", {"unfuse": {}}, {"fuse": {}})
    assert any("no class of transformers is known" in note.message for note in notes)
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_biases_have_no_place_in_the_class_phi3(tmp_path: Path) -> None:
    make("llama-biased", tmp_path / "whole")
    plan = bs.load({
        "inputs": [str(tmp_path / "whole")], "transforms": [{"fuse": {}}], "output": f"{tmp_path / 'out'}/",
    })  # fmt: skip
    notes = bs.check(plan)
    assert any("no class of transformers is known" in note.message for note in notes)
    (differs,) = [note for note in notes if note.code == "config-differs"]
    assert "model_type 'llama' has no 'model.layers.0.self_attn.qkv_proj.weight'" in differs.message
    assert differs.hint.startswith("Write `model_type`, `architectures` and the keys of a class that has them")
    plan.run(durable=False)


def test_what_holds_nothing_is_not_cut(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    make("phi3", tmp_path / "fused")
    with pytest.raises(PlanError, match="have no tensor that holds several"):
        edit(tmp_path / "whole", tmp_path / "out", {"unfuse": {}})
    with pytest.raises(PlanError, match="have no tensors that belong into one"):
        edit(tmp_path / "fused", tmp_path / "out", {"fuse": {}})
