"""`layers`, judged by the models that `transformers` makes of what it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

DECODERS = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "olmo3", "mixtral", "qwen3_moe", "olmoe",
    "flex_olmo", "deepseek_v3", "gpt_neox", "bert", "phi3", "qwen2_moe", "gpt_oss",
)  # fmt: skip
BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "bert": "bert.encoder.layer"}


def blocks(model: Any, name: str) -> tuple[Any, str]:
    owner, _, last = BLOCKS.get(name, "model.layers").rpartition(".")
    return model.get_submodule(owner), last


def rearrange(model: Any, name: str, order: list[int]) -> Any:
    """The model with its layers in that order, as modules."""
    owner, last = blocks(model, name)
    setattr(owner, last, torch.nn.ModuleList([getattr(owner, last)[i] for i in order]))
    for key in ("num_hidden_layers", "n_layer"):
        if hasattr(model.config, key):
            setattr(model.config, key, len(order))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in order]
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_without_its_second_layer_computes_what_the_others_do(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": [1]}})
    count = model.config.num_hidden_layers
    found = load(tmp_path / "out")
    assert found.config.num_hidden_layers == count - 1
    assert_same(logits(found), logits(rearrange(model, name, [0, *range(2, count)])))


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ({"order": ["0:2", "1:3"]}, [0, 1, 1, 2]),
        ({"keep": ["1:"]}, [1, 2]),
        ({"keep": [-1, 0]}, [0, 2]),
        ({"repeat": ["0:2"]}, [0, 0, 1, 1, 2]),
        ({"order": ["::-1"]}, [2, 1, 0]),
        ({"order": [2, "0:2", 0, "::2"]}, [2, 0, 1, 0, 0, 2]),
    ],
)
def test_layers_stand_in_the_order_that_is_asked_for(asked: dict[str, Any], order: list[int], tmp_path: Path) -> None:
    model = make("llama", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"layers": asked})
    assert_same(logits(load(tmp_path / "out")), logits(rearrange(model, "llama", order)))


def test_layers_of_two_models_are_interleaved(tmp_path: Path) -> None:
    ours, theirs = make("llama", tmp_path / "a"), make("llama", tmp_path / "b", num_hidden_layers=5)
    with torch.no_grad():
        theirs.model.layers[4].mlp.up_proj.weight.mul_(-1)
    theirs.save_pretrained(tmp_path / "b")
    asked = {"layers": {"order": ["0:2", "b::3:", "b::4", 2], "alias": "model"}}
    edit(tmp_path / "a", tmp_path / "out", asked, b=tmp_path / "b")
    own, other = ours.model.layers, theirs.model.layers
    mixed = torch.nn.ModuleList([own[0], own[1], other[3], other[4], other[4], own[2]])
    ours.model.layers, ours.config.num_hidden_layers = mixed, 6
    assert_same(logits(load(tmp_path / "out")), logits(ours))


@pytest.mark.parametrize("name", [n for n in DECODERS if n not in ("bert",)])
def test_copies_that_add_nothing_leave_the_model_what_it_computes(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"repeat": ["1:3"], "scale_copies": 0}})
    found = load(tmp_path / "out")
    assert found.config.num_hidden_layers == model.config.num_hidden_layers + 2
    assert_same(logits(found), logits(model))


@pytest.mark.parametrize("name", ["t5", "t5-gated", "whisper"])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_one_stack_of_a_model_with_two_is_changed_alone(name: str, stack: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": [0], "stack": stack}})
    owner = model.model if name == "whisper" else model
    stacked = getattr(owner, f"get_{stack}")()
    last = "layers" if name == "whisper" else "block"
    before = list(getattr(stacked, last))
    if name != "whisper":  # the first layer holds the biases of all
        before[1].layer[0].SelfAttention.relative_attention_bias = (
            before[0].layer[0].SelfAttention.relative_attention_bias
        )
        before[1].layer[0].SelfAttention.has_relative_attention_bias = True
    for at, block in enumerate(before[1:]):
        attention = block.layer[0].SelfAttention if name != "whisper" else block.self_attn
        attention.layer_idx = at
        if stack == "decoder":
            (block.layer[1].EncDecAttention if name != "whisper" else block.encoder_attn).layer_idx = at
    setattr(stacked, last, torch.nn.ModuleList(before[1:]))
    assert_same(logits(load(tmp_path / "out")), logits(model))


def test_what_the_config_lists_for_each_layer_follows(tmp_path: Path) -> None:
    make("gemma3", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"order": [5, "0:2", 5]}})
    local, everywhere = "sliding_attention", "full_attention"
    assert load(tmp_path / "out").config.layer_types == [everywhere, local, local, everywhere]


@pytest.mark.parametrize("dropped", [[2], [0]])
def test_types_of_layers_that_the_config_leaves_to_their_turn_are_written_where_they_are_out_of_it(
    dropped: list[int], tmp_path: Path
) -> None:
    make("gemma2", tmp_path / "whole")
    config = json.loads((tmp_path / "whole/config.json").read_text())
    types = config.pop("layer_types")
    (tmp_path / "whole/config.json").write_text(json.dumps(config))
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": dropped}})
    wanted = [kind for at, kind in enumerate(types) if at not in dropped]
    after = json.loads((tmp_path / "out/config.json").read_text())
    assert after.get("layer_types", ["sliding_attention", "full_attention"]) == wanted
    assert load(tmp_path / "out").config.layer_types == wanted


def test_leading_and_numbered_layers_are_counted_again(tmp_path: Path) -> None:
    make("deepseek_v3", tmp_path / "latent")
    edit(tmp_path / "latent", tmp_path / "a", {"layers": {"drop": [0]}})
    assert load(tmp_path / "a").config.first_k_dense_replace == 0
    make("qwen3_moe", tmp_path / "mixed", mlp_only_layers=[1])
    edit(tmp_path / "mixed", tmp_path / "b", {"layers": {"order": [1, 0, 1, 2]}})
    assert load(tmp_path / "b").config.mlp_only_layers == [0, 2]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "give one of keep, drop, repeat and order, got none"),
        ({"keep": [0], "drop": [1]}, "got `keep` and `drop`"),
        ({"drop": ["0:3"]}, "no layer is left"),
        ({"keep": [3]}, "there is no layer 3: the model has 3"),
        ({"order": ["1:4"]}, "the range '1:4' is not valid: the model has 3 layers"),
        ({"order": ["2:1"]}, "the range '2:1' is not valid: it has no layers"),
        ({"keep": ["first"]}, "'first' is no layer and no range of layers"),
        ({"keep": [0], "stack": "tower"}, "which layers are meant"),
        ({"keep": [0], "part": "text_config"}, "of no family that is known"),
    ],
)
def test_layers_that_there_are_not_are_refused(asked: dict[str, Any], why: str, tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    with pytest.raises(PlanError, match=re.escape(why)):
        edit(tmp_path / "whole", tmp_path / "out", {"layers": asked})


def test_layers_whose_kind_is_told_by_their_place_stay_in_front(tmp_path: Path) -> None:
    make("deepseek_v3", tmp_path / "whole")
    with pytest.raises(PlanError, match="first_k_dense_replace 1: those layers would not come first any more"):
        edit(tmp_path / "whole", tmp_path / "out", {"layers": {"order": [1, 0]}})


def test_a_model_that_is_not_what_its_config_says_is_refused(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    steps = {"delete": {"target": r"model\.layers\.1\..*"}}, {"layers": {"drop": [0]}}
    with pytest.raises(PlanError, match=r"config.json says 3 layers, but those of 'model' are 0 to 2, 2 in all"):
        edit(tmp_path / "whole", tmp_path / "out", *steps)


# --- Quantized models -------------------------------------------------------------------------------------------------


def quantized(folder: Path, floats: str, **settings: Any) -> dict[str, Any]:
    """A tiny model with 12 layers of codes but for some modules; the `quantization_config` that says so, and others."""
    make("llama", folder / "whole", num_hidden_layers=12)
    codes = rf"model\.layers\.(?!{floats}).*_proj\.weight"
    edit(folder / "whole", folder / "codes", {"quantize": {"target": codes, "to": "float8_e4m3fn", "block": [8, 8]}})
    config = json.loads((folder / "codes/config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "codes/config.json").write_text(json.dumps(config))
    return config["quantization_config"]


def projections(folder: Path) -> tuple[set[str], set[str]]:
    """The projections of a model that are codes, and those that are floats."""
    names = [name.removesuffix(".weight") for name in bs.open(str(folder)) if name.endswith("_proj.weight")]
    codes = {name for name in names if f"{name}.weight_scale_inv" in bs.open(str(folder))}
    return codes, set(names) - codes


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


REORDERED = [{"drop": [0]}, {"drop": [1]}, {"order": [11, 10, 1]}, {"repeat": ["0:2"]}, {"order": ["::-1", 1, 10]}]


@pytest.mark.parametrize("asked", REORDERED, ids=str)
def test_a_config_names_the_floats_among_quantized_layers_where_they_are_now(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    quantized(tmp_path, r"1\.|10\.mlp\.")
    edit(tmp_path / "codes", tmp_path / "out", {"layers": asked})
    _, floats = projections(tmp_path / "out")
    said = set(settings_of(tmp_path / "out")["modules_to_not_convert"])
    assert {name for name in said if "layers" in name} == floats
    assert said - floats == {"model.embed_tokens", "lm_head"}


PATTERNS: dict[str, Any] = {
    "names": ["lm_head", "model.layers.1", "model.layers.10.mlp"],
    "names without their beginning": ["layers.1", "layers.10.mlp"],
    "names with a longer beginning": ["language_model.model.layers.1.*", "language_model.model.layers.10.mlp"],
    "patterns of one number": [r"re:model\.layers\.1\..*", r"re:.*layers\.10\.mlp.*"],
    "a pattern of two numbers": [r"re:model\.layers\.(1\.|10\.mlp\.).*", "re:.*norm"],
}


def says(entries: list[str], module: str) -> bool:
    """Whether a list names a module: by its name, the end of it, a module around it, or a pattern."""
    plain = [entry.removesuffix(".*").split("layers.")[-1] for entry in entries if not entry.startswith("re:")]
    inner = module.split("layers.")[-1]
    patterns = [entry.removeprefix("re:") for entry in entries if entry.startswith("re:")]
    return any(f"{inner}.".startswith(f"{p}.") for p in plain) or any(re.match(p, module) for p in patterns)


@pytest.mark.parametrize("which", PATTERNS)
@pytest.mark.parametrize("asked", REORDERED[:4], ids=str)
def test_however_a_config_names_modules_it_means_the_same(which: str, asked: dict[str, Any], tmp_path: Path) -> None:
    quantized(tmp_path, r"1\.|10\.mlp\.", ignore=PATTERNS[which], modules_to_not_convert=None)
    edit(tmp_path / "codes", tmp_path / "out", {"layers": asked})
    codes, floats = projections(tmp_path / "out")
    entries = settings_of(tmp_path / "out")["ignore"]
    assert {name for name in codes | floats if says(entries, name)} == floats


def test_keys_of_a_config_that_name_modules_follow_their_layers(tmp_path: Path) -> None:
    dynamic = {r"-:model\.layers\.1\..*": {}, r"+:.*layers\.3\..*": {"bits": 8}, r"-:lm_head": {}, "group": {"size": 3}}
    quantized(tmp_path, r"1\.", dynamic=dynamic, extra_config={"model.layers.1": {"bits": 16}})
    edit(tmp_path / "codes", tmp_path / "out", {"layers": {"order": [3, 1, 0, 3]}})
    found = settings_of(tmp_path / "out")
    assert found["extra_config"] == {"model.layers.1": {"bits": 16}}
    assert found["dynamic"] == {
        r"-:model\.layers\.1\..*": {}, r"+:.*layers\.0\..*": {"bits": 8}, r"+:.*layers\.3\..*": {"bits": 8},
        r"-:lm_head": {}, "group": {"size": 3},
    }  # fmt: skip


def test_floats_of_another_model_among_quantized_layers_are_named(tmp_path: Path) -> None:
    quantized(tmp_path, r"1\.")
    asked = {"layers": {"order": [0, "b::2", 1], "alias": "model"}}
    edit(tmp_path / "codes", tmp_path / "out", asked, b=tmp_path / "whole")
    _, floats = projections(tmp_path / "out")
    assert {name.split(".")[2] for name in floats} == {"1", "2"}
    assert {n for n in settings_of(tmp_path / "out")["modules_to_not_convert"] if "layers" in n} == floats


def test_a_list_of_floats_that_were_moved_is_noted_and_the_patch_mends_it(tmp_path: Path) -> None:
    quantized(tmp_path, r"1\.")
    swap = [{"move": {"from": rf"model::model\.layers\.{a}\.(.*)", "to": rf"model::{b}\1"}}
            for a, b in ((0, "kept."), (1, "model.layers.0."))]  # fmt: skip
    back = {"move": {"from": r"model::kept\.(.*)", "to": r"model::model.layers.1.\1"}}
    notes = edit(tmp_path / "codes", tmp_path / "out", *swap, back)
    (said,) = [note for note in notes if "modules_to_not_convert" in note.message]
    assert (
        "names 'model.layers.1.mlp.down_proj', which is quantized (6 more like it), and does not name " in said.message
    )
    patch = yaml.safe_load(re.findall("`(.*)`", said.hint)[0])["config"]
    plan = {"inputs": [f"model::{tmp_path / 'codes'}"], "transforms": [*swap, back],
            "output": {"path": f"{tmp_path / 'mended'}/", "config": patch}}  # fmt: skip
    assert not [note for note in bs.check(bs.load(plan)) if "modules_to_not_convert" in note.message]
    bs.load(plan).run(durable=False)
    _, floats = projections(tmp_path / "mended")
    listed = set(settings_of(tmp_path / "mended")["modules_to_not_convert"])
    assert listed == floats | {"model.embed_tokens", "lm_head"}
    assert {name.split(".")[2] for name in floats} == {"0"}


def test_lists_of_floats_that_follow_their_layers_are_not_noted(tmp_path: Path) -> None:
    quantized(tmp_path, r"1\.")
    for at, steps in enumerate(([], [{"layers": {"drop": [0]}}], [{"layers": {"order": [1, 0, 1]}}])):
        notes = edit(tmp_path / "codes", tmp_path / f"out{at}", *steps)
        assert not [note for note in notes if "modules_to_not_convert" in note.message]
