"""`prune`, judged by the models that `transformers` makes of what it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from brainsurgery_jax.errors import PlanError
from tests.plans.models import narrow_gpt2
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

GROUPED = (
    "llama", "llama-biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen2_moe", "qwen3_moe",
    "phi3", "gpt_oss",
)  # fmt: skip
"""Models of 4 heads in 2 groups."""

WRITERS = {
    "gpt2": (r"c_proj\.weight", 0), "gpt_neox": (r"dense(_4h_to_h)?\.weight", 1), "bert": (r"output\.dense\.weight", 1),
    "vit": (r"(fc2|output\.dense)\.weight", 1), "t5": (r"\.(o|wo)\.weight", 1), "t5-gated": (r"\.(o|wo)\.weight", 1),
    "whisper": (r"(out_proj|fc2)\.weight", 1),
}  # fmt: skip
"""The matrices that read what heads and neurons give, and along which axis; the others are those of Llama."""


def silence(model: Any, name: str, entries: list[int], size: int, only: str = "") -> Any:
    """The model where nothing reads these entries of what is so wide."""
    pattern, axis = WRITERS.get(name, (r"(o_proj|down_proj|w2)(\.weight)?$", 1))
    found = 0
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if re.search(pattern, key) and only in key and weight.shape[axis - weight.ndim if axis else 0] == size:
                weight.movedim(axis, 0)[entries] = 0
                found += 1
    assert found
    return model


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_heads_is_taken_out_with_its_keys_and_values(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"kv_groups": [0]}})
    found = load(tmp_path / "out")
    assert (found.config.num_attention_heads, found.config.num_key_value_heads) == (2, 1)
    width = model.model.layers[0].self_attn.o_proj.weight.shape[1]
    silenced = silence(model, name, list(range(width // 2)), width, "o_proj")
    assert_same(logits(found), logits(silenced))


@pytest.mark.parametrize("name", ["llama", "qwen3", "deepseek_v3", "t5"])
def test_heads_are_taken_out_as_evenly_as_groups_want_it(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    heads = [1, 2]
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"heads": heads}})
    found = load(tmp_path / "out")
    writer = next(w for k, w in model.named_parameters() if re.search(r"o_proj\.weight|\.o\.weight", k))
    each = writer.shape[1] // 4
    entries = [head * each + n for head in heads for n in range(each)]
    silenced = silence(model, name, entries, writer.shape[1], "o_proj" if name != "t5" else ".o.")
    assert_same(logits(found), logits(silenced))


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma2", "olmo2", "gpt_neox", "bert", "vit", "t5", "t5-gated", "whisper", "phi3"]
)
def test_neurons_are_taken_out_with_all_that_reads_and_writes_them(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    dropped = [0, 7, 8, 39]
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"neurons": dropped}})
    width = 128 if name == "gpt2" else 40
    only = {"whisper": "encoder", "t5": "wo", "t5-gated": "wo"}.get(name, "")
    assert_same(logits(load(tmp_path / "out")), logits(silence(model, name, dropped, width, only)))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "phi3", "gemma2", "olmo2"])
def test_a_dense_model_gets_no_width_of_experts_and_can_be_upcycled_then(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    steps: list[dict[str, Any]] = [{"prune": {"neurons": [3, 5, 6, 9]}}, {"assert": {"consistent": "model"}}]
    if name in ("llama", "mistral"):
        steps += [{"upcycle": {"experts": 4, "per_token": 2, "router": "zero"}}, {"assert": {"consistent": "model"}}]
    edit(tmp_path / "whole", tmp_path / "out", *steps)
    assert "moe_intermediate_size" not in json.loads((tmp_path / "out/config.json").read_text())


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"])
def test_neurons_of_experts_are_taken_out_of_every_expert(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole", **({"first_k_dense_replace": 0} if name == "deepseek_v3" else {}))
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"neurons": [3, 5, 6, 9]}})
    width = 40 if name in ("mixtral", "olmoe", "gpt_oss") else 24
    with torch.no_grad():
        for layer in model.model.layers:
            down = layer.mlp.experts.down_proj.movedim(1 if name == "gpt_oss" else 2, 0)
            down[[3, 5, 6, 9]] = 0
            if name == "deepseek_v3":
                layer.mlp.shared_experts.down_proj.weight[:, [3, 5, 6, 9, 27, 29, 30, 33]] = 0
    found = load(tmp_path / "out")
    assert found.model.layers[0].mlp.experts.down_proj.shape[1 if name == "gpt_oss" else 2] == width - 4
    assert_same(logits(found), logits(model))


def test_neurons_of_experts_are_told_from_the_stream_where_both_are_as_wide(tmp_path: Path) -> None:
    model = make("gpt_oss", tmp_path / "whole", intermediate_size=32)
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"neurons": [3, 5, 6, 9], "prove": True}})
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj[:, [3, 5, 6, 9]] = 0
    assert_same(logits(load(tmp_path / "out")), logits(model))


def norms(tensors: dict[str, torch.Tensor], names: dict[str, tuple[int, int]], units: int) -> torch.Tensor:
    """The squared norms of units: of each tensor the axis, and how often they come along it."""
    total = torch.zeros(units)
    for name, (axis, outer) in names.items():
        w = tensors[name].movedim(axis, 0)
        total += w.reshape(outer, units, -1).square().sum((0, 2))
    return total


def test_neurons_of_least_norm_go_in_each_layer(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"neurons": 0.25}})
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "out"))
    chosen = []
    for layer in range(3):
        head = f"model.layers.{layer}.mlp"
        names = {
            f"{head}.gate_proj.weight": (0, 1),
            f"{head}.up_proj.weight": (0, 1),
            f"{head}.down_proj.weight": (1, 1),
        }
        kept = norms(before, names, 40).topk(30).indices.sort().values
        chosen.append(kept.tolist())
        for name, (axis, _) in names.items():
            assert torch.equal(after[name], before[name].index_select(axis, kept))
        dropped = [n for n in range(40) if n not in kept]
        with torch.no_grad():
            model.model.layers[layer].mlp.down_proj.weight[:, dropped] = 0
    assert len({tuple(kept) for kept in chosen}) == 3
    assert_same(logits(load(tmp_path / "out")), logits(model))


def test_the_group_of_least_norm_goes_in_each_layer(tmp_path: Path) -> None:
    model = make("mistral", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"kv_groups": 1}})
    before = load_file(tmp_path / "whole/model.safetensors")
    for layer in range(3):
        head = f"model.layers.{layer}.self_attn"
        names = {f"{head}.{n}_proj.weight": (int(n == "o"), 1) for n in "qkvo"}
        gone = int(norms(before, names, 2).argmin())
        with torch.no_grad():
            model.model.layers[layer].self_attn.o_proj.weight[:, gone * 24 : gone * 24 + 24] = 0
    assert_same(logits(load(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "t5", "whisper", "mixtral", "deepseek_v3", "bert"])
def test_neurons_of_every_family_are_chosen_by_norm(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"neurons": 4}})
    load(tmp_path / "out")


def test_heads_are_named_for_each_layer(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"prune": {"kv_groups": {0: [1], 1: [0], 2: [1]}}})
    with torch.no_grad():
        for layer, gone in enumerate((1, 0, 1)):
            model.model.layers[layer].self_attn.o_proj.weight[:, gone * 16 : gone * 16 + 16] = 0
    assert_same(logits(load(tmp_path / "out")), logits(model))


def test_a_width_that_only_a_division_with_a_rest_gives_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    import brainsurgery_jax as bs

    narrow_gpt2().transformer.save_pretrained(tmp_path / "whole")  # 12 heads of width 2: 24 // 10 is 2 as well
    steps = [{"prune": {"heads": [2, 5]}}]
    plan = bs.load({"inputs": [str(tmp_path / "whole")], "transforms": steps, "output": str(tmp_path / "out")})
    assert any("the config has no key for n_embd // n_head" in note.message for note in bs.check(plan))
    plan.run(durable=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["n_head"] == 12


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "bert", "olmoe"])
def test_heads_that_no_config_can_say_are_taken_out_with_a_note(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    inputs = [f"model::{tmp_path / 'whole'}"]
    import brainsurgery_jax as bs

    asked = {"kv_groups": [0]} if name == "olmoe" else {"heads": [0, 2]}
    plan = bs.load({"inputs": inputs, "transforms": [{"prune": asked}], "output": str(tmp_path / "out.safetensors")})
    assert any("the config has no key for" in note.message for note in bs.check(plan))
    plan.run(durable=False)
    before, after = load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "out.safetensors")
    if name == "gpt2":
        kept = [third * 32 + head * 8 + n for third in range(3) for head in (1, 3) for n in range(8)]
        assert torch.equal(
            after["transformer.h.1.attn.c_attn.weight"], before["transformer.h.1.attn.c_attn.weight"][:, kept]
        )
        assert torch.equal(after["transformer.h.1.attn.c_proj.weight"],
                           before["transformer.h.1.attn.c_proj.weight"][[*range(8, 16), *range(24, 32)]])  # fmt: skip
    if name == "gpt_neox":
        kept = [*range(24, 48), *range(72, 96)]
        key = "gpt_neox.layers.1.attention.query_key_value.bias"
        assert torch.equal(after[key], before[key][kept])


@pytest.mark.parametrize(
    ("name", "asked", "why"),
    [
        ("llama", {}, "give one of heads, kv_groups and neurons, got none"),
        ("llama", {"heads": [0], "neurons": 3}, "got heads and neurons"),
        ("llama", {"heads": [4]}, "there is no number 4 of 4 heads"),
        ("llama", {"heads": [0]}, "would differ: 1 of group 0, 2 of group 1"),
        ("llama", {"heads": [0, 1, 2, 3]}, "no heads would be left"),
        ("llama", {"heads": 1}, "can only be chosen in whole groups"),
        ("llama", {"kv_groups": {0: [1], 1: [0]}}, "layers would not all have as many left"),
        ("llama", {"neurons": {0: [1], 1: [0], 2: [1, 2]}}, "layers would not all have as many left"),
        ("llama", {"neurons": 40}, "40 of 40 neurons are 40 to take out"),
        ("llama", {"neurons": 0.01}, "0.01 of 40 neurons are 0 to take out"),
        ("llama", {"neurons": "many"}, "expected a list of numbers"),
        ("phi3", {"kv_groups": 1}, "holds tensors of several sizes"),
        ("t5", {"heads": 1}, "so none can choose heads by itself"),
    ],
)
def test_what_cannot_be_taken_out_is_refused(name: str, asked: dict[str, Any], why: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    with pytest.raises(PlanError, match=re.escape(why)):
        edit(tmp_path / "whole", tmp_path / "out", {"prune": asked})


@pytest.mark.parametrize(("dtype", "left", "fits"), [
    ("float32", 38, False), ("float32", 36, True), ("bfloat16", 36, False), ("bfloat16", 32, True),
])  # fmt: skip
def test_experts_that_transformers_loads_and_cannot_run_are_noted(
    dtype: str, left: int, fits: bool, tmp_path: Path
) -> None:
    make("mixtral", tmp_path / "whole")
    cast = {"cast_": {"target": ".*", "to": dtype}}, {"config": {"patch": {"dtype": dtype}}}
    steps = *cast, {"prune": {"neurons": 40 - left}}
    notes = [note for note in edit(tmp_path / "whole", tmp_path / "out", *steps) if note.code == "structure-experts"]
    assert [note.hint.partition(";")[0] for note in notes] == (
        [] if fits else [f"Leave a multiple of {4 if dtype == 'float32' else 8} neurons"]
    )
    if fits:
        logits(load(tmp_path / "out"))
    else:
        with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
            logits(load(tmp_path / "out"))
    eager = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "out", experts_implementation="eager")
    logits(eager)


def test_shards_of_too_few_neurons_are_noted(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    asked = {"upcycle": {"experts": 8, "per_token": 4, "shards": 4}}
    notes = edit(tmp_path / "whole", tmp_path / "out", asked)
    assert [note.code for note in notes] == ["structure-experts"]
    assert not edit(tmp_path / "whole", tmp_path / "two", {"upcycle": {"experts": 8, "per_token": 4, "shards": 2}})
