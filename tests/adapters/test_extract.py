"""`lora_extract`: PEFT loads what it takes out of a model, and makes that model of the base with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.adapters.models import (
    ENCODER,
    QUIET,
    TIED_HEADS,
    WORDS,
    disturb,
    extract,
    gpt2,
    llama,
    logits,
    merge,
    qwen,
    tuned,
    with_adapter,
)
from tests.checkpoints import normal, plan_of, problems, read

pytestmark = QUIET

FULL = 48
"""A rank that no matrix of these models exceeds."""


def config_of(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text())


MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...], int]] = {
    "all of it": (llama, (), 0),
    "with biases": (qwen, (), 0),
    "transposed matrices": (gpt2, (), 0),
    "one head for all": (lambda: llama(tie_word_embeddings=True), (), 0),
    "added tokens": (llama, (), 56),
    "added tokens, one head for all": (lambda: qwen(tie_word_embeddings=True), (), 56),
    "some matrices": (qwen, ("0.self_attn.q_proj.weight", "down_proj"), 0),
    "biases of what is no target": (qwen, ("q_proj.bias", "up_proj"), 0),
    "norms beside a matrix": (llama, ("norm", "o_proj"), 0),
}


@pytest.mark.parametrize("kind", MODELS)
def test_at_full_rank_the_base_with_its_adapter_is_the_tuned_model(kind: str, tmp_path: Path):
    make, names, vocabulary = MODELS[kind]
    wanted = logits(tuned(tmp_path, make(), *names, vocabulary=vocabulary))
    found = with_adapter(tmp_path, extract(tmp_path, rank=FULL), vocabulary)
    torch.testing.assert_close(logits(found), wanted, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(logits(found.merge_and_unload()), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("ties", "names"), [
    ((False, True), ()), ((True, False), ("lm_head",)), ((True, False), ("embed_tokens",)),
], ids=["only in the tuned one", "only in the base, another head", "only in the base, another table"])  # fmt: skip
def test_a_head_that_is_the_table_in_one_model_only_is_that_of_the_tuned_one(
    ties: tuple[bool, bool], names: tuple[str, ...], tmp_path: Path
):
    torch.manual_seed(3)
    base, model = (llama(tie_word_embeddings=tied).eval() for tied in ties)
    kept = {n: x for n, x in base.state_dict().items() if not ties[1] or n != "lm_head.weight"}
    model.load_state_dict(kept, strict=False)
    model.tie_weights()
    disturb(model, "q_proj", *names)
    base.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "tuned")
    found = with_adapter(tmp_path, extract(tmp_path, rank=FULL))
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", TIED_HEADS)
def test_a_head_that_is_the_table_changes_with_it_whatever_its_name(kind: str, tmp_path: Path):
    make, table, head, matrix = TIED_HEADS[kind]
    model = tuned(tmp_path, make(), f"{table}.", matrix, "bias")
    adapter = extract(tmp_path, rank=FULL)
    assert config_of(adapter)["modules_to_save"] == [table, head]
    found = with_adapter(tmp_path, adapter, kind=type(model))
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(logits(found.merge_and_unload()), logits(model), rtol=1e-5, atol=2e-6)


def test_a_table_that_others_share_under_unknown_names_is_refused(tmp_path: Path):
    config = BartConfig(vocab_size=WORDS, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=40,
                        decoder_ffn_dim=40, encoder_attention_heads=4, decoder_attention_heads=4)  # fmt: skip
    tuned(tmp_path, BartForConditionalGeneration(config), "shared", "q_proj")
    with pytest.raises(PlanError, match=r"'model\.shared' differs, and other modules share it"):
        extract(tmp_path, rank=4)


def test_the_config_follows_from_names_and_shapes(tmp_path: Path):
    tuned(tmp_path, gpt2(), "c_attn.weight", "1.mlp.c_fc.weight", "ln_f", "0.mlp.c_fc.bias")
    config = config_of(extract(tmp_path, rank=4))
    told = {key: config[key] for key in ("r", "lora_alpha", "bias", "fan_in_fan_out", "task_type")}
    assert told == {"r": 4, "lora_alpha": 4, "bias": "all", "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    assert (config["target_modules"], config["modules_to_save"]) == (["c_attn", "h.1.mlp.c_fc"], ["ln_f"])
    assert config["base_model_name_or_path"] == str(tmp_path / "base")


CLASSIFIERS: dict[str, tuple[Any, str, list[str]]] = {
    "a sequence by BERT": (lambda: BertForSequenceClassification(BertConfig(**ENCODER)), "SEQ_CLS", ["classifier"]),
    "a sequence by RoBERTa, whose classifier has parts": (
        lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER)), "SEQ_CLS", ["classifier"],
    ),
    "a sequence by DistilBERT, which has two": (
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=WORDS, dim=32, hidden_dim=40, n_layers=2, n_heads=4)
        ),
        "SEQ_CLS", ["classifier", "pre_classifier"],
    ),
    "tokens": (lambda: BertForTokenClassification(BertConfig(**ENCODER)), "TOKEN_CLS", ["classifier"]),
    "answers": (lambda: BertForQuestionAnswering(BertConfig(**ENCODER)), "QUESTION_ANS", ["qa_outputs"]),
}  # fmt: skip


@pytest.mark.parametrize("changes", [True, False], ids=["the classifier differs", "it is the same"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_is_saved_whole_as_peft_asks_for_it(kind: str, changes: bool, tmp_path: Path):
    make, task, whole = CLASSIFIERS[kind]
    model = tuned(tmp_path, make(), "query.weight", "q_lin.weight", *(whole if changes else ()))
    adapter = extract(tmp_path, rank=FULL)
    config = config_of(adapter)
    assert (config["task_type"], config["modules_to_save"]) == (task, whole)
    found = with_adapter(tmp_path, adapter, kind=type(model))
    for name, tensor in found.merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-5, atol=2e-6, msg=name)


def test_the_names_of_a_base_without_its_prefix_are_completed(tmp_path: Path):
    wanted = logits(tuned(tmp_path, gpt2(), "c_attn", "wte"))
    for alias in ("base", "tuned"):
        path = str(tmp_path / alias)
        bs.load({"inputs": [path], "transforms": [{"move": {"from": r"transformer\.(.+)", "to": r"\1"}}],
                 "output": {"path": path, "overwrite": True}}).run(durable=False)  # fmt: skip
    torch.testing.assert_close(logits(with_adapter(tmp_path, extract(tmp_path, rank=FULL))), wanted, atol=2e-6, rtol=0)


# --- How much is kept -------------------------------------------------------------------------------------------------


def deltas(folder: Path) -> dict[str, np.ndarray]:
    """The changes of all matrices, in double precision."""
    base, model = (load_file(folder / alias / "model.safetensors") for alias in ("base", "tuned"))
    return {n: (model[n].double() - base[n].double()).numpy() for n in base if model[n].dim() == 2}


def left_out(folder: Path, adapter: Path) -> dict[str, float]:
    """The squared length of what the adapter lacks of each change, by our own merge of it."""
    (folder / "adapter").symlink_to(adapter)
    made, wanted = merge(folder), load_file(folder / "tuned/model.safetensors")
    return {n: float(((made[n].double() - wanted[n].double()) ** 2).sum()) for n in deltas(folder)}


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95])
def test_each_matrix_keeps_its_share_of_the_energy_and_no_rank_more(energy: float, tmp_path: Path):
    tuned(tmp_path, llama(), "proj", "lm_head", falling=True)
    adapter = extract(tmp_path, energy=energy)
    factors = load_file(adapter / "adapter_model.safetensors")
    lost = left_out(tmp_path, adapter)
    for name, delta in deltas(tmp_path).items():
        s2 = np.linalg.svd(delta, compute_uv=False) ** 2
        assert lost[name] <= (1 - energy + 1e-5) * s2.sum()
        rank, (m, n) = 1 + int((np.cumsum(s2) < energy * s2.sum()).sum()), delta.shape
        a = factors.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
        whole = factors.get(f"base_model.model.{name}")
        if not s2.sum():
            assert a is None and whole is None
        elif rank * (m + n) < m * n:
            assert a is not None and a.shape[0] == rank
        else:
            assert a is None and whole is not None


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_logits_miss_those_of_the_tuned_model_by_no_more_than_the_directions_left_out(rank: int, tmp_path: Path):
    model = tuned(tmp_path, llama(), "lm_head")
    found = with_adapter(tmp_path, extract(tmp_path, rank=rank, method="exact"))
    with torch.no_grad():
        hidden = model.model(torch.arange(24).reshape(2, 12) % WORDS).last_hidden_state
    (next_value,) = np.linalg.svd(deltas(tmp_path)["lm_head.weight"], compute_uv=False)[rank : rank + 1]
    missed = (logits(found) - logits(model)).norm(dim=-1)
    assert (missed <= next_value * hidden.norm(dim=-1) + 1e-5).all()
    assert missed.max() > 0.05 * next_value * hidden.norm(dim=-1).max(), "the bound is no empty one"


def test_a_budget_goes_where_it_keeps_most(tmp_path: Path):
    tuned(tmp_path, llama(), "proj", "lm_head")
    budget = 4000
    factors = load_file(extract(tmp_path, budget=budget, method="exact") / "adapter_model.safetensors")
    spent = sum(x.numel() for x in factors.values())
    assert budget - 80 < spent <= budget
    spectra = {n: np.linalg.svd(d, compute_uv=False) ** 2 / sum(d.shape) for n, d in deltas(tmp_path).items()}
    ranks = {n: 0 if (a := factors.get(f"base_model.model.{n.removesuffix('.weight')}.lora_A.weight")) is None
             else a.shape[0] for n in spectra}  # fmt: skip
    worst = min(s[ranks[n] - 1] for n, s in spectra.items() if ranks[n])
    best_left = max(s[ranks[n]] for n, s in spectra.items() if ranks[n] < len(s))
    assert best_left <= worst * (1 + 1e-3) or best_left - worst < 1e-4 * worst


def test_only_the_names_that_are_meant_are_looked_at(tmp_path: Path):
    tuned(tmp_path, llama())
    names = load_file(extract(tmp_path, rank=2, of=r"base::.*q_proj\.weight") / "adapter_model.safetensors")
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj"}


def test_factors_have_the_dtype_that_is_said(tmp_path: Path):
    tuned(tmp_path, llama(), "q_proj")
    plain = load_file(extract(tmp_path, rank=2) / "adapter_model.safetensors")
    assert {x.dtype for x in plain.values()} == {torch.float32}
    (tmp_path / "lora").rename(tmp_path / "before")
    short = load_file(extract(tmp_path, rank=2, dtype="bfloat16") / "adapter_model.safetensors")
    assert {x.dtype for x in short.values()} == {torch.bfloat16}


@pytest.mark.parametrize("size", [{"rank": 2}, {"energy": 0.9}, {"budget": 500}])
def test_a_check_of_headers_has_nothing_to_say(size: Any, tmp_path: Path):
    tuned(tmp_path, llama(), "proj")
    step = {"lora_extract": {"base": "base", "tuned": "tuned", "to": "adapter", **size}}
    made = {"inputs": [f"{a}::{tmp_path / a}" for a in ("base", "tuned")], "transforms": [step],
            "output": {"path": str(tmp_path / "lora"), "alias": "adapter", "format": "peft"}}  # fmt: skip
    assert bs.check(bs.load(made)) == ()


# --- What is refused --------------------------------------------------------------------------------------------------

W = {"h.0.w.weight": normal((4, 3)), "h.0.w.bias": normal((4,)), "n.weight": normal((5,))}
STEP = {"base": "base", "tuned": "tuned", "to": "adapter", "rank": 2}


def plan(tmp_path: Path, other: Any, **keys: Any) -> dict[str, Any]:
    made = plan_of(tmp_path, {"base": W, "tuned": other}, {"lora_extract": {**STEP, **keys}})
    return made | {"output": {"path": str(tmp_path / "lora"), "alias": "adapter", "format": "peft"}}


@pytest.mark.parametrize(("other", "code", "why"), [
    ({**W, "h.0.w.weight": normal((4, 6))}, "shapes-differ", r"'h\.0\.w\.weight' is f32\[4,3\] in 'base'"),
    ({**W, "more": normal((3,))}, "unmatched", "'more' is in 'tuned' and not in 'base'"),
    ({n: x for n, x in W.items() if n != "n.weight"}, "unmatched", "'n.weight' is in 'base' and not in 'tuned'"),
])  # fmt: skip
def test_models_of_other_tensors_are_refused_from_headers(other: Any, code: str, why: str, tmp_path: Path):
    with pytest.raises(PlanError, match=why) as caught:
        bs.load(plan(tmp_path, other)).explain()
    assert [d.code for d in caught.value.diagnostics] == [code]


@pytest.mark.parametrize(("other", "why"), [
    (W, "no matrix of 'tuned' differs from that of 'base'"),
    ({**W, "n.weight": W["n.weight"] + 1}, "no matrix of 'tuned' differs from that of 'base'"),
    ({**W, "h.0.w.weight": W["h.0.w.weight"] * np.float32(np.nan)}, "holds NaN or infinity"),
])  # fmt: skip
def test_what_only_data_tell_is_refused_before_anything_is_written(other: Any, why: str, tmp_path: Path):
    with pytest.raises(PlanError, match=why):
        bs.load(plan(tmp_path, other)).run(durable=False)
    assert not (tmp_path / "lora").exists()


def test_a_rank_beyond_that_of_a_matrix_is_told_and_the_matrix_kept_whole(tmp_path: Path):
    other = {**W, "h.0.w.weight": normal((4, 3), seed=5)}
    done = bs.load(plan(tmp_path, other, rank=16)).run(durable=False)
    assert "rank 16 is more than 'h.0.w.weight' can have: all of it is kept, at rank 3" in str(done.notes)
    assert config_of(tmp_path / "lora")["r"] == 3
    found = {name.rpartition("lora_")[2]: x.numpy() for name, x in
             load_file(tmp_path / "lora/adapter_model.safetensors").items()}  # fmt: skip
    made = found["B.weight"] @ found["A.weight"]
    np.testing.assert_allclose(made, other["h.0.w.weight"] - W["h.0.w.weight"], atol=1e-5)


@pytest.mark.parametrize("rank", [1, 16])
def test_matrices_beside_which_another_parameter_differs_are_not_said_to_be_too_small(rank: int, tmp_path: Path):
    base = {**W, "h.0.w.weight_bias": normal((4,))}
    other = {name: x + 1 for name, x in base.items()}
    made = plan_of(tmp_path, {"base": base, "tuned": other}, {"lora_extract": {**STEP, "rank": rank}})
    with pytest.raises(PlanError, match=r"'h\.0\.w\.weight_bias' differ, so that their modules are kept whole"):
        bs.load(made).run(durable=False)


def test_an_energy_for_which_no_matrix_is_of_low_rank_is_refused(tmp_path: Path):
    other = {**W, "h.0.w.weight": normal((4, 3), seed=5)}
    step = {key: value for key, value in STEP.items() if key != "rank"} | {"energy": 1}
    made = plan_of(tmp_path, {"base": W, "tuned": other}, {"lora_extract": step})
    with pytest.raises(PlanError, match=r"factors with energy 1\.0 take more than the matrix itself"):
        bs.load(made).run(durable=False)


@pytest.mark.parametrize("name", ["h.0.scale", "h.0.c.parametrizations.weight.original0", "h.0.c.weight_g"])
def test_a_parameter_that_is_of_no_module_alone_is_refused(name: str, tmp_path: Path):
    base = {**W, name: normal((3,)), "h.0.x.y.weight": normal((3,))}
    other = {**base, name: base[name] + 1, "h.0.w.weight": base["h.0.w.weight"] + 1}
    made = plan_of(tmp_path, {"base": base, "tuned": other}, {"lora_extract": STEP})
    with pytest.raises(PlanError, match=rf"'{re.escape(name)}' differs, and is the parameter of no module"):
        bs.load(made).run(durable=False)


@pytest.mark.parametrize(("keys", "code"), [
    ({"rank": None}, "key-missing"), ({"energy": 0.9}, "key-missing"), ({"rank": None, "energy": 1.5}, "value-type"),
    ({"rank": 0}, "value-type"), ({"rank": None, "budget": -1}, "value-type"),
])  # fmt: skip
def test_the_size_is_said_once(keys: Any, code: str, tmp_path: Path):
    step = {key: value for key, value in {**STEP, **keys}.items() if value is not None}
    found = problems(tmp_path, {"base": W, "tuned": W}, {"lora_extract": step})
    assert code in [d.code for d in found]


def test_a_budget_that_no_matrix_fits_into_is_refused(tmp_path: Path):
    other = {**W, "h.0.w.weight": W["h.0.w.weight"] + 1}
    step = {key: value for key, value in STEP.items() if key != "rank"} | {"budget": 5}
    made = plan_of(tmp_path, {"base": W, "tuned": other}, {"lora_extract": step})
    with pytest.raises(PlanError, match="no matrix fits into 5 parameters"):
        bs.load(made).run(durable=False)


def test_the_same_adapter_comes_out_whatever_the_budget(tmp_path: Path):
    tuned(tmp_path, llama(), "proj")
    first = read(extract(tmp_path, rank=3) / "adapter_model.safetensors")
    (tmp_path / "lora").rename(tmp_path / "first")
    step = {"lora_extract": {"base": "base", "tuned": "tuned", "to": "adapter", "rank": 3}}
    spec = {"inputs": [f"{a}::{tmp_path / a}" for a in ("base", "tuned")], "transforms": [step],
            "output": {"path": str(tmp_path / "lora"), "alias": "adapter", "format": "peft"}}  # fmt: skip
    bs.load(spec).run(durable=False, memory=64 << 20)
    again = read(tmp_path / "lora/adapter_model.safetensors")
    assert all(np.array_equal(x, again[name]) for name, x in first.items())


def test_steps_with_other_ranks_add_to_an_adapter_that_peft_loads_whole(tmp_path: Path):
    wanted = logits(tuned(tmp_path, llama(), "q_proj", "1.self_attn.k_proj", "norm"))
    step = {"base": "base", "tuned": "tuned", "to": "adapter"}
    steps = [{"lora_extract": {**step, "rank": 32, "of": r"base::.*(q_proj|norm)\.weight"}},
             {"lora_extract": {**step, "rank": 16, "of": r"base::.*k_proj\.weight"}}]  # fmt: skip
    inputs = [f"{alias}::{tmp_path / alias}" for alias in ("base", "tuned")]
    output = {"path": str(tmp_path / "lora"), "alias": "adapter", "format": "peft"}
    bs.load({"inputs": inputs, "transforms": steps, "output": output}).run(durable=False)
    config = config_of(tmp_path / "lora")
    assert (config["r"], config["rank_pattern"]) == (32, {"k_proj": 16})
    found = logits(with_adapter(tmp_path, tmp_path / "lora"))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


def test_an_empty_alias_may_become_the_adapter(tmp_path: Path):
    step = {"lora_extract": {"base": "base", "tuned": "tuned", "to": "lora", "rank": 1}}
    assert not problems(tmp_path, {"base": W, "tuned": W}, [{"prefixes": {"mode": "add", "alias": "lora"}}, step])


def test_the_alias_of_other_tensors_is_not_taken_for_the_adapter(tmp_path: Path):
    step = {"lora_extract": {"base": "base", "tuned": "tuned", "to": "other", "rank": 1}}
    (found,) = problems(tmp_path, {"base": W, "tuned": W, "other": {"x": normal((2,))}}, step)
    assert found.code == "alias-exists"
