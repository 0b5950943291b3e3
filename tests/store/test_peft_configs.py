"""The adapter_config.json of adapters that a plan makes: what follows from names and shapes, what must be said, what
differs; and what PEFT makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.errors import Diagnostic, PlanError
from tests.checkpoints import normal, write

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*lora_B.bias"),
]

HEAD = "base_model.model."
LAYERS, WIDTH, HEADS, WORDS = 2, 16, 4, 20
TOKENS = torch.tensor([[1, 5, 17, 3, 9, 2]])
ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")

Make = Callable[[], Any]


def llama() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=HEADS)).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 8}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()


def factors(make: Make, modules: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Factors of these ranks for modules of a model."""
    found = dict(make().named_modules())
    made = {}
    for seed, (module, rank) in enumerate(modules.items()):
        weight = found[module].weight
        outward, inward = weight.shape if not make().__class__.__name__.startswith("GPT2") else weight.shape[::-1]
        made[f"{HEAD}{module}.lora_A.weight"] = normal((rank, inward), seed=2 * seed)
        made[f"{HEAD}{module}.lora_B.weight"] = normal((outward, rank), seed=2 * seed + 1)
    return made


def everywhere(rank: int, *modules: str) -> dict[str, int]:
    return {f"model.layers.{layer}.{module}": rank for layer in range(LAYERS) for module in modules}


def said(make: Make, adapter: Mapping[str, np.ndarray], scales: Mapping[str, float]) -> torch.Tensor:
    """The logits of a model with the products of an adapter added to its weights, and its whole tensors in place."""
    model = make()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in adapter.items():
            short = name.removeprefix(HEAD)
            if short.endswith(".lora_B.weight"):
                module = short.removesuffix(".lora_B.weight")
                product = torch.from_numpy(array @ adapter[f"{HEAD}{module}.lora_A.weight"]) * scales[module]
                weight = weights[f"{module}.weight"]
                weight += product if weight.shape == product.shape and make is llama else product.T
            elif ".lora_" not in short:
                weights[short].copy_(torch.from_numpy(array))
        return model(TOKENS).logits


def loaded(make: Make, folder: Path) -> torch.Tensor:
    """The logits that PEFT's model gives."""
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(make(), str(folder)).eval()(TOKENS).logits


def plan(source: Path, out: Path, *steps: Any, **config: Any) -> dict[str, Any]:
    output = {"path": str(out), "format": "peft"} | ({"options": {"config": config}} if config else {})
    return {"inputs": [str(source)], "transforms": [*steps], "output": output}


def written(tmp_path: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """A folder that a plan writes from bare tensors."""
    source = write(tmp_path / "m.safetensors", tensors)
    bs.load(plan(source, tmp_path / "out", **config)).run(durable=False)
    return tmp_path / "out"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


# --- What follows from names and shapes -------------------------------------------------------------------------------


def test_peft_computes_what_the_factors_say(tmp_path: Path) -> None:
    adapter = factors(llama, everywhere(3, *ATTENTION))
    out = written(tmp_path, adapter, lora_alpha=6)
    assert config_of(out) == {
        "lora_alpha": 6, "peft_type": "LORA", "r": 3, "target_modules": [*ATTENTION],
    }  # fmt: skip
    expected = said(llama, adapter, dict.fromkeys(everywhere(3, *ATTENTION), 2.0))
    torch.testing.assert_close(loaded(llama, out), expected)


def test_ranks_that_differ_become_patterns(tmp_path: Path) -> None:
    ranks = everywhere(3, *ATTENTION) | {"model.layers.1.self_attn.v_proj": 5} | everywhere(2, "mlp.up_proj")
    adapter = factors(llama, ranks)
    pattern = {"model.layers.1.self_attn.v_proj": 5, "mlp.up_proj": 2}
    out = written(tmp_path, adapter, lora_alpha=3, alpha_pattern=pattern)
    assert (config_of(out)["r"], config_of(out)["rank_pattern"]) == (3, pattern)
    torch.testing.assert_close(loaded(llama, out), said(llama, adapter, dict.fromkeys(ranks, 1.0)))


def test_whole_tensors_become_modules_to_save(tmp_path: Path) -> None:
    whole = {"lm_head": (WORDS, WIDTH), "model.norm": (WIDTH,), "model.layers.0.input_layernorm": (WIDTH,),
             "model.layers.1.input_layernorm": (WIDTH,)}  # fmt: skip
    saved = {f"{HEAD}{module}.weight": normal(shape, seed=9) for module, shape in whole.items()}
    adapter = factors(llama, everywhere(3, "mlp.up_proj")) | saved
    out = written(tmp_path, adapter, lora_alpha=3)
    assert config_of(out)["modules_to_save"] == ["lm_head", "model.norm", "input_layernorm"]
    scales = dict.fromkeys(everywhere(3, "mlp.up_proj"), 1.0)
    torch.testing.assert_close(loaded(llama, out), said(llama, adapter, scales))


def test_modules_of_some_layers_alone_are_named_in_full(tmp_path: Path) -> None:
    ranks = {"model.layers.1.self_attn.q_proj": 2}
    adapter = factors(llama, ranks)
    out = written(tmp_path, adapter, lora_alpha=2)
    assert config_of(out)["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(loaded(llama, out), said(llama, adapter, dict.fromkeys(ranks, 1.0)))


def test_the_transposed_weights_of_gpt2_are_known(tmp_path: Path) -> None:
    ranks = {f"transformer.h.{layer}.attn.c_attn": 2 for layer in range(LAYERS)}
    adapter = factors(gpt2, ranks)
    out = written(tmp_path, adapter, lora_alpha=2)
    assert config_of(out)["fan_in_fan_out"] is True
    torch.testing.assert_close(loaded(gpt2, out), said(gpt2, adapter, dict.fromkeys(ranks, 1.0)))


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"lora_bias": True}], ids=["plain", "dora", "biased"])
def test_what_peft_saved_says_the_same_without_its_config(kind: dict[str, Any], tmp_path: Path) -> None:
    lora = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **kind)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = peft.get_peft_model(llama(), lora)
    model.save_pretrained(str(tmp_path / "theirs"))
    bare = tmp_path / "theirs" / "adapter_model.safetensors"
    bs.load(plan(bare, tmp_path / "ours", lora_alpha=6)).run(durable=False)
    torch.testing.assert_close(loaded(llama, tmp_path / "ours"), loaded(llama, tmp_path / "theirs"))


def test_factors_of_a_table_of_words_are_known(tmp_path: Path) -> None:
    lora = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["embed_tokens"], init_lora_weights=False)
    peft.get_peft_model(llama(), lora).save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    bare = tmp_path / "theirs" / "adapter_model.safetensors"
    bs.load(plan(bare, tmp_path / "ours", lora_alpha=3)).run(durable=False)
    assert (config_of(tmp_path / "ours")["r"], config_of(tmp_path / "ours")["target_modules"]) == (
        3, ["model.embed_tokens"],
    )  # fmt: skip
    torch.testing.assert_close(loaded(llama, tmp_path / "ours"), loaded(llama, tmp_path / "theirs"))


# --- What must be said ------------------------------------------------------------------------------------------------


def refusal(plan: dict[str, Any]) -> Diagnostic:
    (found,) = bs.check(bs.load(plan))
    with pytest.raises(PlanError, match=re.escape(found.message)):
        bs.load(plan).run(durable=False)
    return found


def pasted(plan: dict[str, Any], found: Diagnostic) -> dict[str, Any]:
    """The plan with what a message says to write in the output."""
    (text,) = re.findall(r"`(options: .*?)`(?: in the output|:)", found.hint)
    return plan | {"output": plan["output"] | yaml.safe_load(text)}


@pytest.mark.parametrize("ranks", [everywhere(3, *ATTENTION), everywhere(3, *ATTENTION) | everywhere(2, "mlp.up_proj")])
def test_the_scale_is_asked_for_and_what_is_proposed_leaves_the_product_as_it_is(
    ranks: dict[str, int], tmp_path: Path
) -> None:
    adapter = factors(llama, ranks)
    asked = plan(write(tmp_path / "m.safetensors", adapter), tmp_path / "out")
    found = refusal(asked)
    assert (found.code, found.severity) == ("adapter-config", "error")
    assert "lora_alpha is not known" in found.message
    bs.load(pasted(asked, found)).run(durable=False)
    torch.testing.assert_close(loaded(llama, tmp_path / "out"), said(llama, adapter, dict.fromkeys(ranks, 1.0)))


def test_one_alpha_for_modules_of_several_ranks_is_asked_about(tmp_path: Path) -> None:
    ranks = everywhere(4, *ATTENTION) | everywhere(2, "mlp.up_proj")
    adapter = factors(llama, ranks)
    asked = plan(write(tmp_path / "m.safetensors", adapter), tmp_path / "out", lora_alpha=6)
    found = refusal(asked)
    assert found.message.endswith(
        "alpha_pattern is not known: beside the rank 4 there are 2 (mlp.up_proj), and PEFT multiplies by lora_alpha / r"
    )
    mended = pasted(asked, found)
    assert mended["output"]["options"] == {"config": {"lora_alpha": 6, "alpha_pattern": {"mlp.up_proj": 3}}}
    bs.load(mended).run(durable=False)
    torch.testing.assert_close(loaded(llama, tmp_path / "out"), said(llama, adapter, dict.fromkeys(ranks, 1.5)))
    one = plan(tmp_path / "m.safetensors", tmp_path / "one", lora_alpha=6, alpha_pattern={})
    bs.load(one).run(durable=False)
    scales = {module: 6 / rank for module, rank in ranks.items()}
    torch.testing.assert_close(loaded(llama, tmp_path / "one"), said(llama, adapter, scales))


def test_the_scale_of_an_adapter_that_comes_with_a_config_is_known(tmp_path: Path) -> None:
    out = written(tmp_path, factors(llama, everywhere(3, *ATTENTION)), lora_alpha=6)
    (out / "adapter_config.json").write_text('{"peft_type": "LORA"}')  # PEFT then takes its own default
    bs.load(plan(out, tmp_path / "again")).run(durable=False)
    assert config_of(tmp_path / "again") == {"peft_type": "LORA", "r": 3, "target_modules": [*ATTENTION]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "is no tensor of a LoRA adapter"),
        (f"{HEAD}model.norm.weight", "there are no factors of LoRA"),
        (f"{HEAD}model.layers.0.mlp.up_proj.lora_E", "is no tensor of a LoRA adapter"),
    ],
)
def test_names_that_are_not_those_of_lora_are_refused_before_anything_is_read(
    name: str, message: str, tmp_path: Path
) -> None:
    found = refusal(plan(write(tmp_path / "m.safetensors", {name: normal((2, 4))}), tmp_path / "out", lora_alpha=2))
    assert message in found.message
    assert "`options: {config: {peft_type: ..., ...}}`" in found.hint
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_another_kind_of_adapter_is_written_as_its_config_says(tmp_path: Path) -> None:
    tensors = {f"{HEAD}model.layers.0.mlp.down_proj.ia3_l": normal((1, 24))}
    config = {"peft_type": "IA3", "target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}
    assert config_of(written(tmp_path, tensors, **config)) == config


# --- What differs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """An adapter of rank 4 with a scale of 2, as PEFT saves it."""
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(llama(), lora).save_pretrained(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


CUT = [
    {"copy": {"from": r"(.*)\.lora_A\.weight::[:2, :]", "to": r"\1.A"}},
    {"copy": {"from": r"(.*)\.lora_B\.weight::[:, :2]", "to": r"\1.B"}},
    {"delete": {"target": r".*\.lora_.*"}},
    {"move": {"from": r"(.*)\.([AB])", "to": r"\1.lora_\2.weight"}},
]


def notes(plan: dict[str, Any]) -> list[Diagnostic]:
    return list(bs.check(bs.load(plan)))


def test_an_adapter_as_peft_saved_it_draws_no_note(theirs: Path, tmp_path: Path) -> None:
    assert notes(plan(theirs, tmp_path / "out")) == []
    named = {"path": str(tmp_path / "out2/"), "format": "safetensors"}
    as_it_is = {"inputs": [str(theirs)], "transforms": [], "output": named}
    assert notes(as_it_is) == []


def test_a_rank_that_was_cut_is_noted_and_the_patch_keeps_the_scale(theirs: Path, tmp_path: Path) -> None:
    cut = plan(theirs, tmp_path / "out", *CUT)
    (note,) = notes(cut)
    assert (note.code, note.severity) == ("config-differs", "note")
    assert (
        "adapter_config.json says rank 4 for 'model.layers.0.self_attn.q_proj', but the tensors have 2" in note.message
    )
    mended = pasted(cut, note)
    assert mended["output"]["options"] == {"config": {"r": 2, "lora_alpha": 4}}
    assert notes(mended) == []
    bs.load(mended).run(durable=False)
    adapter = dict(bs.open(str(tmp_path / "out")))
    expected = said(llama, adapter, dict.fromkeys(everywhere(2, *ATTENTION), 2.0))
    torch.testing.assert_close(loaded(llama, tmp_path / "out"), expected)


def test_one_module_of_another_rank_becomes_a_pattern(theirs: Path, tmp_path: Path) -> None:
    steps = [{key: {k: v.replace("(.*)", "(.*v_proj)") for k, v in body.items()} for key, body in step.items()}
             for step in CUT]  # fmt: skip
    steps[2] = {"delete": {"target": r".*v_proj\.lora_.*"}}
    cut = plan(theirs, tmp_path / "out", *steps)
    mended = pasted(cut, notes(cut)[0])
    assert mended["output"]["options"] == {"config": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 4}}}
    assert notes(mended) == []
    bs.load(mended).run(durable=False)
    adapter = dict(bs.open(str(tmp_path / "out")))
    expected = said(llama, adapter, dict.fromkeys(everywhere(2, *ATTENTION), 2.0))
    torch.testing.assert_close(loaded(llama, tmp_path / "out"), expected)


def test_patterns_that_are_there_follow_the_ranks_and_keep_the_scales(theirs: Path, tmp_path: Path) -> None:
    config = {"rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 24}}  # as if v_proj had been wider
    stale = plan(theirs, tmp_path / "out", **config)
    (note,) = notes(stale)
    mended = pasted(stale, note)
    assert mended["output"]["options"]["config"] == {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"v_proj": 12}}
    assert notes(mended) == []


@pytest.mark.parametrize(
    ("step", "message", "patch"),
    [
        (
            {"move": {"from": r"(.*)\.q_proj\.(.*)", "to": r"\1.k_proj.\2"}},
            "does not list 'model.layers.0.self_attn.k_proj' among target_modules",
            {"target_modules": ["v_proj", "self_attn.k_proj"]},
        ),
        (
            {"delete": {"target": r".*v_proj.*"}},
            "lists 'v_proj' among target_modules, but there are no factors of it",
            {"target_modules": ["q_proj"]},
        ),
    ],
)
def test_target_modules_are_held_against_the_factors(
    theirs: Path, tmp_path: Path, step: Any, message: str, patch: dict[str, Any]
) -> None:
    stale = plan(theirs, tmp_path / "out", step)
    (note,) = notes(stale)
    assert message in note.message
    found = pasted(stale, note)["output"]["options"]["config"]
    assert {key: sorted(value) for key, value in found.items()} == {k: sorted(v) for k, v in patch.items()}
    assert notes(pasted(stale, note)) == []


def test_modules_to_save_are_held_against_the_whole_tensors(tmp_path: Path) -> None:
    whole = {f"{HEAD}model.norm.weight": normal((WIDTH,))}
    adapter = factors(llama, everywhere(2, *ATTENTION)) | whole
    source = write(tmp_path / "m.safetensors", adapter)
    for listed, word in ((["score"], "does not list 'model.norm'"), (["model.norm", "score"], "lists 'score'")):
        stale = plan(source, tmp_path / "out", lora_alpha=2, modules_to_save=listed)
        (note,) = notes(stale)
        assert f"adapter_config.json {word} among modules_to_save" in note.message
        mended = pasted(stale, note)
        assert mended["output"]["options"]["config"] == {"lora_alpha": 2, "modules_to_save": ["model.norm"]}
        assert notes(mended) == []


@pytest.mark.parametrize("key", ["use_dora", "lora_bias"])
def test_a_kind_of_lora_that_the_tensors_are_not_is_noted(theirs: Path, tmp_path: Path, key: str) -> None:
    stale = plan(theirs, tmp_path / "out", **{key: True})
    (note,) = notes(stale)
    assert f"adapter_config.json says {key} true" in note.message
    assert notes(pasted(stale, note)) == []


def test_factors_that_do_not_fit_have_no_patch(theirs: Path, tmp_path: Path) -> None:
    adapter = dict(bs.open(str(theirs)))
    adapter[f"{HEAD}model.layers.0.self_attn.q_proj.lora_B.weight"] = normal((WIDTH, 3))
    folder = written_as(tmp_path / "odd", adapter, config_of(theirs))
    (note,) = notes(plan(folder, tmp_path / "out"))
    assert "the factors of 'model.layers.0.self_attn.q_proj' do not fit" in note.message


def test_a_config_for_factors_that_do_not_fit_is_refused(tmp_path: Path) -> None:
    adapter = factors(llama, everywhere(2, *ATTENTION))
    adapter[f"{HEAD}model.layers.0.self_attn.q_proj.lora_B.weight"] = normal((WIDTH, 3))
    with pytest.raises(PlanError, match=r"f32\[2,16\] does not fit '.*' f32\[16,3\]"):
        bs.load(plan(write(tmp_path / "m.safetensors", adapter), tmp_path / "out", lora_alpha=2)).check()


def written_as(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Path:
    """A folder of PEFT, made by hand."""
    folder.mkdir()
    write(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_in_another_format_is_held_against_the_config_that_comes_along(theirs: Path, tmp_path: Path) -> None:
    output = {"path": str(tmp_path / "out/"), "format": "safetensors"}
    cut = {"inputs": [str(theirs)], "transforms": CUT, "output": output}
    (note,) = notes(cut)
    assert "says rank 4" in note.message


# --- An adapter in a folder of another format -------------------------------------------------------------------------

HALVED = [
    {"copy": {"from": "(.*lora_A.*)::[:2]", "to": r"\1.cut"}},
    {"copy": {"from": "(.*lora_B.*)::[:, :2]", "to": r"\1.cut"}},
    {"delete": {"target": r".*lora_[AB]\.weight"}},
    {"move": {"from": r"(.*)\.cut", "to": r"\1"}},
]
"""Cut the factors of rank 4 down to 2."""


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
@pytest.mark.parametrize("as_step", [False, True])
def test_the_config_that_travels_with_an_adapter_is_changed_by_a_step(tmp_path: Path, format: str, as_step: bool):
    source = written(tmp_path, factors(llama, everywhere(4, "self_attn.q_proj")), lora_alpha=8)
    output = {"path": str(tmp_path / "cut"), "format": format}
    end = {"transforms": [*HALVED, {"save": output}]} if as_step else {"transforms": HALVED, "output": output}
    (note,) = bs.check(bs.load({"inputs": [str(source)], **end}))
    (text,) = re.findall(r"Add `- (.*)` before it is written\.", note.hint)
    steps = [*HALVED, yaml.safe_load(text), *end["transforms"][len(HALVED) :]]
    mended = bs.load({"inputs": [str(source)], **end, "transforms": steps})
    assert bs.check(mended) == ()
    mended.run(durable=False)
    assert json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["r"] == 2
