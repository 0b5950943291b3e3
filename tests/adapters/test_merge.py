"""`lora_merge`: adapters of every kind that PEFT saves, merged as PEFT merges them; others by what their names mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.ops.adapters import read_weights
from tests.adapters.models import QUIET, TIED_HEADS, Tensors, adapted, gpt2, llama, logits, merge, qwen
from tests.checkpoints import normal, plan_of, problems, run_plan

pytestmark = QUIET

PLAIN: Mapping[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}


def assert_as_peft(ours: Tensors, theirs: Tensors) -> None:
    """Every tensor that we write is the one that PEFT has, within the rounding of float32."""
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=2e-7, msg=name)
    assert {name for name in theirs if name not in ours} <= {"lm_head.weight"}, "PEFT has what we have not"


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "LoRA": (llama, {}),
    "patterns": (llama, {"rank_pattern": {"up_proj": 8, r"layers\.1\..*q_proj": 2},
                         "alpha_pattern": {r"layers\.1\..*q_proj": 64, "up_proj": 3}}),
    "rank-stabilized": (llama, {"use_rslora": True, "rank_pattern": {"up_proj": 8}}),
    "DoRA": (llama, {"use_dora": True}),
    "DoRA, rank-stabilized": (llama, {"use_dora": True, "use_rslora": True, "alpha_pattern": {"up_proj": 2}}),
    "an embedding": (llama, {"target_modules": ["embed_tokens", "v_proj"]}),
    "DoRA of an embedding": (llama, {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "the head": (llama, {"target_modules": ["lm_head"]}),
    "whole modules": (llama, {"modules_to_save": ["lm_head", "input_layernorm", "embed_tokens"]}),
    "biases of factors": (qwen, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "all biases": (qwen, {"target_modules": ["q_proj", "up_proj"], "bias": "all"}),
    "transposed matrices": (gpt2, {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}),
    "DoRA of transposed matrices": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True,
                                           "use_dora": True}),
    "trained tokens": (llama, {"trainable_token_indices": [3, 4, 5, 40]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_as_peft_merges_it(kind: str, tmp_path: Path):
    model, keys = KINDS[kind]
    theirs = adapted(tmp_path, model(), **{**PLAIN, **keys})
    wanted = logits(theirs)
    ours = merge(tmp_path)
    assert_as_peft(ours, dict(theirs.merge_and_unload().state_dict()))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted)


def test_added_tokens_untie_a_head_from_its_table(tmp_path: Path):
    keys = {**PLAIN, "modules_to_save": ["embed_tokens", "lm_head"]}
    theirs = adapted(tmp_path, qwen(tie_word_embeddings=True), 64, **keys)
    wanted = logits(theirs)
    assert_as_peft(merge(tmp_path), dict(theirs.merge_and_unload().state_dict()))
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (made.config.vocab_size, made.config.tie_word_embeddings) == (64, False)
    torch.testing.assert_close(logits(made), wanted)


@pytest.mark.parametrize("keys", [
    {"target_modules": ["embed_tokens", "v_proj"]}, {"target_modules": ["lm_head", "v_proj"]},
    {"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]},
], ids=["factors of the table", "factors of the head", "the whole table", "the whole head"])  # fmt: skip
@pytest.mark.parametrize("in_place", [False, True])
def test_what_changes_one_of_a_head_and_its_table_leaves_the_other(keys: Any, in_place: bool, tmp_path: Path):
    wanted = logits(adapted(tmp_path, llama(tie_word_embeddings=True), **{**PLAIN, **keys}))
    if in_place:
        plan = {"inputs": [f"{a}::{tmp_path / a}" for a in ("base", "adapter")],
                "transforms": [{"lora_merge": {"base": "base", "adapters": "adapter"}}],
                "output": {"path": str(tmp_path / "out") + "/", "alias": "base"}}  # fmt: skip
        bs.load(plan).run(durable=False)
    else:
        merge(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted)


@pytest.mark.parametrize(("kind", "part"), [
    (kind, part) for kind in TIED_HEADS for part in ("table", "head", "whole table", "whole head")
    if (kind, part) != ("Mamba", "head")  # for which PEFT has no factors
])  # fmt: skip
def test_a_head_of_any_name_becomes_a_tensor_of_its_own(kind: str, part: str, tmp_path: Path):
    make, table, head, matrix = TIED_HEADS[kind]
    model, one = make(), table if "table" in part else head
    keys = {"modules_to_save": [one]} if "whole" in part else {"target_modules": [matrix, one]}
    theirs = adapted(tmp_path, model, **{**PLAIN, "target_modules": [matrix], "bias": "all", "task_type": None, **keys})
    merge(tmp_path)
    made = type(model).from_pretrained(tmp_path / "out")
    assert made.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(made), logits(theirs), rtol=1e-5, atol=2e-6)


def test_several_adapters_are_merged_as_peft_merges_their_weighted_sum(tmp_path: Path):
    adapted(tmp_path, llama(), name="other", seed=5, **{**PLAIN, "r": 2, "target_modules": ["q_proj", "v_proj"]})
    theirs = adapted(tmp_path, llama(), **PLAIN)
    theirs.load_adapter(str(tmp_path / "other"), "other")
    theirs.add_weighted_adapter(["default", "other"], [0.7, 0.3], "both", combination_type="cat")
    theirs.set_adapter("both")
    ours = merge(tmp_path, {"adapter": 0.7, "other": 0.3}, ("adapter", "other"))
    merged = dict(theirs.merge_and_unload().state_dict())
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_weight_counts_what_an_adapter_changes(tmp_path: Path):
    keys = {**PLAIN, "use_dora": True, "modules_to_save": ["input_layernorm"]}
    theirs = adapted(tmp_path, llama(), **keys)
    base = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict())
    merged = dict(theirs.merge_and_unload().state_dict())
    for name, tensor in merge(tmp_path, {"adapter": 0.25}).items():
        torch.testing.assert_close(tensor, base[name] + 0.25 * (merged[name] - base[name]), rtol=1e-5, atol=1e-6)


def test_a_base_of_short_floats_is_rounded_once(tmp_path: Path):
    adapted(tmp_path, llama(), **PLAIN)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    ad = load_file(tmp_path / "adapter/adapter_model.safetensors")
    base = load_file(tmp_path / "base/model.safetensors")
    ours = merge(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    a, b = (ad[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    exact = base[f"{name}.weight"].double() + 2 * b @ a
    assert ours[f"{name}.weight"].dtype == torch.bfloat16
    off = (ours[f"{name}.weight"] != exact.to(torch.bfloat16)).double().mean()
    assert off < 0.002, "but for ties within the rounding of float32"


def test_a_base_without_the_prefix_of_its_class_is_found(tmp_path: Path):
    theirs = adapted(tmp_path, gpt2(), **{**PLAIN, "target_modules": ["c_attn"], "fan_in_fan_out": True})
    wanted = logits(theirs)
    shorten = {"move": {"from": r"transformer\.(.+)", "to": r"\1"}}
    plan = {"inputs": [f"base::{tmp_path / 'base'}"], "transforms": [shorten],
            "output": {"path": str(tmp_path / "base") + "/", "overwrite": True}}  # fmt: skip
    bs.load(plan).run(durable=False)
    merge(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted)


# --- Other names ------------------------------------------------------------------------------------------------------

UNET = {"down_blocks.0.attentions.0.to_q.weight": normal((6, 4), seed=1),
        "down_blocks.0.attentions.0.to_out.0.weight": normal((4, 6), seed=2),
        "down_blocks.0.conv.weight": normal((5, 3, 3, 3), seed=3),
        "mid.proj_in.weight": normal((5, 3, 1, 1), seed=4), "mid.proj_in.bias": normal((5,), seed=5)}  # fmt: skip
ATTENTION = "down_blocks.0.attentions.0"
MODULES = {f"{ATTENTION}.to_q": (normal((2, 4), seed=6), normal((6, 2), seed=7)),
           f"{ATTENTION}.to_out.0": (normal((2, 6), seed=8), normal((4, 2), seed=9)),
           "down_blocks.0.conv": (normal((2, 3, 3, 3), seed=10), normal((5, 2, 1, 1), seed=11)),
           "mid.proj_in": (normal((2, 3, 1, 1), seed=12), normal((5, 2, 1, 1), seed=13))}  # fmt: skip


def product(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """By its definition, entry by entry."""
    return np.einsum("or,ri->oi", b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1)).reshape(shape)


def merged_unet(tmp_path: Path, adapter: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run_plan(
        tmp_path, {"base": UNET, "adapter": adapter}, {"lora_merge": {"base": "base", "adapters": "adapter"}}
    )


def test_names_of_kohya_with_alpha_and_convolutions_are_merged(tmp_path: Path):
    adapter = {}
    for module, (a, b) in MODULES.items():
        stem = f"lora_unet_{module.replace('.', '_')}"
        adapter |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": np.float32(0.5)}
    made = merged_unet(tmp_path, adapter)
    for module, (a, b) in MODULES.items():
        w = UNET[f"{module}.weight"]
        np.testing.assert_allclose(made[f"{module}.weight"], w + 0.25 * product(a, b, w.shape), atol=1e-6)
    assert np.array_equal(made["mid.proj_in.bias"], UNET["mid.proj_in.bias"])


@pytest.mark.parametrize("ends", [("lora_A", "lora_B"), ("lora.down", "lora.up")])
def test_names_of_diffusers_are_merged(ends: tuple[str, str], tmp_path: Path):
    adapter = {f"unet.{m}.{end}.weight": x for m, pair in MODULES.items() for end, x in zip(ends, pair, strict=True)}
    made = merged_unet(tmp_path, adapter)
    for module, (a, b) in MODULES.items():
        w = UNET[f"{module}.weight"]
        np.testing.assert_allclose(made[f"{module}.weight"], w + product(a, b, w.shape), atol=1e-6)


def test_names_of_attention_processors_are_merged(tmp_path: Path):
    stem = f"unet.{ATTENTION}.processor"
    names = {"to_q": "to_q", "to_out.0": "to_out"}
    adapter = {f"{stem}.{own}_lora.{end}.weight": x for module, own in names.items()
               for end, x in zip(("down", "up"), MODULES[f"{ATTENTION}.{module}"], strict=True)}  # fmt: skip
    made = merged_unet(tmp_path, adapter)
    for module in names:
        w = UNET[f"{ATTENTION}.{module}.weight"]
        wanted = w + product(*MODULES[f"{ATTENTION}.{module}"], w.shape)
        np.testing.assert_allclose(made[f"{ATTENTION}.{module}.weight"], wanted, atol=1e-6)


# --- What is refused --------------------------------------------------------------------------------------------------

W = {"h.0.w.weight": normal((4, 3)), "h.1.w.weight": normal((4, 3))}
A, B = {"h.0.w.lora_A.weight": normal((2, 3))}, {"h.0.w.lora_B.weight": normal((4, 2))}
REFUSED: dict[str, tuple[Mapping[str, np.ndarray], str]] = {
    "one factor": (A, "not both factors of 'h.0.w'"),
    "the other factor": (B, "not both factors of 'h.0.w'"),
    "a magnitude alone": ({"h.0.w.lora_magnitude_vector": normal((4,))}, "not both factors"),
    "a name that says nothing": (
        {**A, **B, "h.0.w.hada_w1_a": normal((2, 2))},
        "it is not known how they change a model: .*hada_w1_a",
    ),
    "no such module": ({k.replace("h.0", "h.9"): x for k, x in {**A, **B}.items()}, "has no module 'h.9.w'"),
    "several modules": ({k.replace("h.0.", ""): x for k, x in {**A, **B}.items()}, "may be several modules"),
    "other shapes": ({**A, "h.0.w.lora_B.weight": normal((5, 2))}, r"make no weight of shape \[4, 3\]"),
    "factors that do not fit": ({**A, "h.0.w.lora_B.weight": normal((4, 3))}, "make no weight of shape"),
    "two modules that are one": (
        {f"{stem}{k}": x for stem in ("m.", "m_2.") for k, x in {**A, **B}.items()},
        "'m.h.0.w' and 'm_2.h.0.w' of 'adapter' are one module of 'base', 'h.0.w'",
    ),
    "two modules that are one, of which one has another shape": (
        {"m.h.0.w.lora_A.weight": normal((2, 5)), "m.h.0.w.lora_B.weight": normal((4, 2))}
        | {f"m_2.{k}": x for k, x in {**A, **B}.items()},
        "'m.h.0.w' and 'm_2.h.0.w' of 'adapter' are one module of 'base', 'h.0.w'",
    ),
    "kohya's name beside a plain one": (
        {
            **A,
            **B,
            "lora_unet_h_0_w.lora_down.weight": normal((2, 3)),
            "lora_unet_h_0_w.lora_up.weight": normal((4, 2)),
        },
        "are one module of 'base', 'h.0.w'",
    ),
    "a factor of two names": ({**A, **B, "h.0.w.lora_down.weight": normal((2, 3))}, "are one part of one module"),
    "a bias where there is none": ({**A, **B, "h.0.w.lora_B.bias": normal((4,))}, "adds a bias"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_merged_is_refused_from_headers(kind: str, tmp_path: Path):
    adapter, why = REFUSED[kind]
    with pytest.raises(PlanError, match=why):
        bs.load(plan_of(tmp_path, {"base": W, "adapter": adapter},
                        {"lora_merge": {"base": "base", "adapters": "adapter"}})).explain()  # fmt: skip


def test_parts_of_a_module_that_was_saved_whole_are_added_to_a_base_without_it(tmp_path: Path):
    added = {"base_model.model.classifier.dense.weight": normal((2, 3))}
    config = {"lora_alpha": 2, "modules_to_save": ["classifier"]}
    step = {"lora_merge": {"base": "base", "adapters": "adapter", "config": config}}
    made = run_plan(tmp_path, {"base": W, "adapter": {**A, **B, **added}}, step)
    np.testing.assert_array_equal(made["classifier.dense.weight"], normal((2, 3)))


@pytest.mark.parametrize("config", [{}, {"lora_alpha": 8}, {"lora_alpha": 8, "use_rslora": True}])
@pytest.mark.parametrize("alpha", [{}, {"h.0.w.alpha": np.float32(2)}])
def test_factors_of_rank_0_change_nothing(config: Any, alpha: Mapping[str, np.ndarray], tmp_path: Path):
    empty = {"h.0.w.lora_A.weight": np.zeros((0, 3), np.float32), "h.0.w.lora_B.weight": np.zeros((4, 0), np.float32)}
    beside = {name.replace("h.0", "h.1"): x for name, x in {**A, **B}.items()}
    step = {"base": "base", "adapters": "adapter", **({"config": config} if config else {})}
    made = run_plan(tmp_path, {"base": W, "adapter": {**empty, **alpha, **beside}}, {"lora_merge": step})
    assert np.array_equal(made["h.0.w.weight"], W["h.0.w.weight"])
    assert not np.array_equal(made["h.1.w.weight"], W["h.1.w.weight"])


@pytest.mark.parametrize(("config", "why"), [
    ({"peft_type": "IA3"}, "'peft_type' in adapter_config.json of 'adapter' is IA3"),
    ({"init_lora_weights": "pissa"}, "it changed the base before training"),
    ({"use_qalora": True}, "'use_qalora' in adapter_config.json of 'adapter' is set"),
])  # fmt: skip
def test_what_is_no_plain_product_is_refused_by_its_config(config: Any, why: str, tmp_path: Path):
    step = {"lora_merge": {"base": "base", "adapters": "adapter", "config": config}}
    (found,) = problems(tmp_path, {"base": W, "adapter": {**A, **B}}, step)
    assert found.code == "adapter-merge" and why in found.message


def test_an_adapter_of_peft_without_its_config_needs_what_it_says(tmp_path: Path):
    adapter = {f"base_model.model.{name}": x for name, x in {**A, **B}.items()}
    tensors, step = {"base": W, "adapter": adapter}, {"base": "base", "adapters": "adapter"}
    (found,) = problems(tmp_path, tensors, {"lora_merge": step})
    assert found.code == "adapter-merge" and "without an adapter_config.json" in found.message
    made = run_plan(tmp_path, tensors, {"lora_merge": {**step, "config": {"lora_alpha": 6}}})
    np.testing.assert_allclose(
        made["h.0.w.weight"], W["h.0.w.weight"] + 3 * B["h.0.w.lora_B.weight"] @ A["h.0.w.lora_A.weight"], atol=1e-5
    )


@pytest.mark.parametrize("own", [True, False], ids=["with a config of its own", "without"])
@pytest.mark.parametrize(("config", "why"), [
    ({"lora_alpa": 16}, "the key 'lora_alpa', which PEFT does not know. Did you mean 'lora_alpha'?"),
    ({"use_rs_lora": True}, "Did you mean 'use_rslora'?"),
    ({"lora_alpha": "16"}, "'lora_alpha' of 'config' is '16', and PEFT takes a number"),
])  # fmt: skip
def test_a_setting_that_would_not_count_is_refused(config: Any, why: str, own: bool, tmp_path: Path):
    prefix = "" if own else "base_model.model."
    adapter = {f"{prefix}{name}": x for name, x in {**A, **B}.items()}
    step = {"lora_merge": {"base": "base", "adapters": "adapter", "config": config}}
    (found,) = problems(tmp_path, {"base": W, "adapter": adapter}, step)
    assert found.code == "adapter-config" and why in found.message


def test_settings_that_do_not_count_are_taken_but_do_not_stand_for_alpha(tmp_path: Path):
    adapter = {f"base_model.model.{name}": x for name, x in {**A, **B}.items()}
    tensors, step = {"base": W, "adapter": adapter}, {"base": "base", "adapters": "adapter"}
    others = {"r": 2, "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}
    (found,) = problems(tmp_path, tensors, {"lora_merge": {**step, "config": others}})
    assert found.code == "adapter-merge" and "without an adapter_config.json" in found.message
    assert not problems(tmp_path, tensors, {"lora_merge": {**step, "config": {**others, "lora_alpha": 6}}})


def test_a_weight_is_a_number() -> None:
    assert read_weights({"a": 0, "b": 1.5}) == {"a": 0.0, "b": 1.5}
    for wrong in (True, False, "1", None):
        with pytest.raises(ValueError, match="a mapping of aliases to weights"):
            read_weights({"a": wrong})
