"""A config.json against names and shapes: no word on models as they are, and the patch that mends what is planted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from brainsurgery_jax.config_patch import patch_mapping
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.families.compare import FAMILIES, differences, places
from brainsurgery_jax.families.model import ConfigDifference
from brainsurgery_jax.families.names import kin_of
from tests.families.models import CLASSES, UNKNOWN, Saved, saved

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

_LLAMA = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim")  # fmt: skip
_BERT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings",
         "type_vocab_size")  # fmt: skip
_T5 = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers")
_TOWER = ("hidden_size", "intermediate_size", "num_hidden_layers")

KEYS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "llama-tied", "llama-biased", "llama-base", "llama-classes", "mistral", "qwen3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "ministral"), _LLAMA),
    **dict.fromkeys(("qwen2", "olmo", "olmo2", "olmo3", "granite", "smollm3"), _LLAMA[:6]),
    "phi3": (*_LLAMA[:6],),
    "mixtral": (*_LLAMA[:6], "num_local_experts"),
    "qwen2_moe": (*_LLAMA[:2], *_LLAMA[3:6], "num_experts", "moe_intermediate_size", "shared_expert_intermediate_size"),
    "qwen3_moe": (*_LLAMA[:2], *_LLAMA[3:], "num_local_experts", "moe_intermediate_size"),
    **dict.fromkeys(("olmoe", "flex_olmo"), (*_LLAMA[:6], "num_experts")),
    "gpt_oss": (*_LLAMA, "num_local_experts"),
    "deepseek_v3": (
        *_LLAMA[:5], "n_routed_experts", "moe_intermediate_size", "n_shared_experts", "q_lora_rank", "kv_lora_rank",
        "qk_nope_head_dim", "v_head_dim",
    ),
    **dict.fromkeys(("gpt2", "gpt2-base"), ("vocab_size", "n_embd", "n_layer", "n_positions")),
    "gpt_neox": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    **dict.fromkeys(("bert", "bert-classes", "roberta"), _BERT),
    "electra": (*_BERT, "embedding_size"),
    **dict.fromkeys(("t5", "t5-gated"), _T5),
    "vit": (*_TOWER, "patch_size", "num_channels"),
    "whisper": ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim",
                "max_source_positions", "max_target_positions"),
    "clip": (*(f"text_config.{key}" for key in (*_TOWER, "vocab_size")), *(f"vision_config.{key}" for key in _TOWER)),
    "llava": (*(f"text_config.{key}" for key in _LLAMA), *(f"vision_config.{key}" for key in (*_TOWER, "patch_size"))),
    "opt": ("vocab_size", "hidden_size", "ffn_dim", "num_hidden_layers"),
}  # fmt: skip
"""The keys that the tensors of a model tell."""

STALE = [(name, key) for name, keys in KEYS.items() for key in keys]


def told(found: Saved) -> tuple[ConfigDifference, ...]:
    return differences(found.config, found.avals)


def settled(config: Mapping[str, Any], found: tuple[ConfigDifference, ...]) -> Any:
    """The config with the patches of all differences."""
    for each in found:
        config = patch_mapping(config, each.patch)
    return config


def at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for word in key.split("."):
        value = value[word]
    return value


def nested(key: str, value: Any) -> dict[str, Any]:
    part, _, word = key.rpartition(".")
    return {part: {word: value}} if part else {word: value}


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_is_said_of_a_model_as_it_was_saved(name: str) -> None:
    assert told(saved(name)) == ()


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in UNKNOWN])
def test_every_class_of_the_table_is_recognised(name: str) -> None:
    found = saved(name)
    assert tuple(places(found.config, kin_of(found.avals)))
    assert name in KEYS


def test_every_family_has_a_class_that_it_was_tried_on() -> None:
    kinds = {place.family.name for name in KEYS for place in places(saved(name).config, kin_of(saved(name).avals))}
    assert kinds == {family.name for family in FAMILIES}


@pytest.mark.parametrize(("name", "key"), STALE)
def test_a_stale_size_is_told_with_the_patch_that_sets_it_right(name: str, key: str) -> None:
    found = saved(name)
    right = at(found.config, key)
    stale = patch_mapping(found.config, nested(key, right + 1))
    differs = differences(stale, found.avals)
    assert settled(stale, differs) == found.config
    assert any(f"says {key} {right + 1}, but the tensors have {right}" in each.message for each in differs)


@pytest.mark.parametrize(("name", "key"), STALE)
def test_a_size_told_twice_as_large_is_settled_by_a_patch(name: str, key: str) -> None:
    # Heads of half the width in twice the number are as many rows: the patch may then be another one that fits.
    found = saved(name)
    stale = patch_mapping(found.config, nested(key, 2 * at(found.config, key)))
    differs = differences(stale, found.avals)
    assert differs
    assert differences(settled(stale, differs), found.avals) == ()


def test_a_difference_names_a_tensor_that_shows_it() -> None:
    found = saved("llama")
    (differs,) = differences({**found.config, "vocab_size": 90}, found.avals)
    assert differs.message == (
        "config.json says vocab_size 90, but the tensors have 91: 'lm_head.weight' is f32[91,32]"
    )  # fmt: skip
    assert differs.patch == {"vocab_size": 91}


def test_a_product_of_sizes_is_told_in_the_words_of_the_config() -> None:
    found = saved("mistral")
    (differs,) = differences({**found.config, "num_key_value_heads": 4}, found.avals)
    assert differs.message == (
        "config.json says num_key_value_heads 4, but the tensors have 2: "
        "'model.layers.0.self_attn.k_proj.weight' is f32[24,32] (num_key_value_heads * head_dim = 24)"
    )


# --- Tensors that were changed ----------------------------------------------------------------------------------------


def without(found: Saved, *words: str) -> Saved:
    return found._replace(avals={n: a for n, a in found.avals.items() if not any(w in n for w in words)})


def grown(found: Saved, rows: int) -> Saved:
    """The model with other numbers of rows in its tables of words."""
    words = {a.shape[0] for n, a in found.avals.items() if "embed" in n or "wte" in n or "shared" in n}
    size = max(words)
    resized = {n: Aval((rows, *a.shape[1:]), a.dtype) if a.shape[:1] == (size,) else a for n, a in found.avals.items()}
    return found._replace(avals=resized)


def mended(found: Saved) -> dict[str, Any]:
    """What the patches of all differences change in the config. Nothing else may differ then."""
    config = settled(found.config, told(found))
    assert differences(config, found.avals) == ()
    return {key: value for key, value in config.items() if value != found.config.get(key)}


LAYERED = {
    "llama": ("model.layers.2.", {"num_hidden_layers": 2}),
    "qwen2": ("model.layers.2.", {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}),
    "mixtral": ("model.layers.2.", {"num_hidden_layers": 2}),
    "gpt2": ("h.2.", {"n_layer": 2}),
    "gpt_neox": ("layers.2.", {"num_hidden_layers": 2}),
    "bert": ("layer.2.", {"num_hidden_layers": 2}),
    "t5": ("encoder.block.2.", {"num_layers": 2}),
    "vit": ("layer.2.", {"num_hidden_layers": 2}),
    "whisper": ("encoder.layers.2.", {"encoder_layers": 2}),
    "deepseek_v3": ("layers.2.", {"num_hidden_layers": 2}),
}


@pytest.mark.parametrize("name", LAYERED)
def test_a_layer_that_is_gone_is_told(name: str) -> None:
    word, expected = LAYERED[name]
    assert mended(without(saved(name), word)) == expected


@pytest.mark.parametrize("name", LAYERED)
def test_a_layer_missing_among_the_others_is_told_with_the_moves_that_number_them_anew(name: str) -> None:
    word = LAYERED[name][0].replace("2", "1")
    gap = [each for each in told(without(saved(name), word)) if each.moves]
    assert len(gap) == 1
    assert "loaders count from 0 without gaps" in gap[0].message
    ((pattern, template),) = gap[0].moves
    assert "(?P<i>2)" in pattern
    assert "${i-1}" in template


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_moe", "gpt2", "gpt_neox", "bert", "t5-gated", "whisper"])
def test_a_vocabulary_that_grew_is_told(name: str) -> None:
    assert mended(grown(saved(name), 97)) == {"vocab_size": 97}


EXPERTS = {"mixtral": "num_local_experts", "qwen3_moe": "num_local_experts", "olmoe": "num_experts",
           "deepseek_v3": "n_routed_experts"}  # fmt: skip


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_that_is_gone_with_its_row_of_the_router_is_told(name: str) -> None:
    found = without(saved(name), ".experts.3.")
    of_router = (".gate.weight", ".e_score_correction_bias")
    routers = {n: Aval((3, *a.shape[1:]), a.dtype) if n.endswith(of_router) else a for n, a in found.avals.items()}
    assert mended(found._replace(avals=routers)) == {EXPERTS[name]: 3}


def test_more_experts_for_a_token_than_there_are_left_is_told() -> None:
    found = without(saved("mixtral"), ".experts.1.", ".experts.2.", ".experts.3.")
    routers = {n: Aval((1, *a.shape[1:]), a.dtype) if n.endswith(".gate.weight") else a for n, a in found.avals.items()}
    assert mended(found._replace(avals=routers)) == {"num_local_experts": 1, "num_experts_per_tok": 1}


def test_an_expert_that_is_gone_while_the_router_stays_has_no_patch() -> None:
    differs = told(without(saved("mixtral"), ".experts.3."))
    assert differs and all(not each.patch for each in differs)
    assert "no value of num_local_experts results in 3" in differs[0].message


def test_experts_in_a_model_that_has_none_are_told() -> None:
    dense, experts = saved("llama"), saved("mixtral")
    mixed = {n: a for n, a in experts.avals.items() if "block_sparse_moe" in n}
    found = Saved(dense.config, without(dense, ".mlp.").avals | mixed)
    (differs,) = told(found)
    assert differs.message.startswith("model_type 'llama' has no experts, but there is 'model.layers.0.block_sparse")
    assert mended(found) == {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4,
    }  # fmt: skip


def test_experts_that_no_one_class_names_so_have_no_patch() -> None:
    found = saved("llama")
    found.avals["model.layers.0.mlp.experts.0.up_proj.weight"] = found.avals["model.layers.0.mlp.up_proj.weight"]
    (differs,) = told(found)
    assert (differs.patch, differs.classes) == ({}, True)


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3", "gpt_neox"])
def test_a_head_that_is_gone_is_told(name: str) -> None:
    head = {"gpt_neox": "embed_out"}.get(name, "lm_head")
    assert mended(without(saved(name), head)) == {"tie_word_embeddings": True}


def test_a_head_beside_a_flag_that_ties_it_is_told() -> None:
    found = saved("llama")
    assert mended(found._replace(config={**found.config, "tie_word_embeddings": True})) == {
        "tie_word_embeddings": False
    }


def test_a_copy_of_the_table_that_nobody_touched_is_no_difference() -> None:
    found = saved("llama")
    config = {**found.config, "tie_word_embeddings": True}
    assert differences(config, found.avals, {name: name for name in found.avals}) == ()


@pytest.mark.parametrize("name", ["llama-base", "llama-classes"])
def test_a_class_without_a_head_lacks_none(name: str) -> None:
    assert "lm_head.weight" not in saved(name).avals
    assert told(saved(name)) == ()


def test_another_dtype_than_the_config_names_is_told() -> None:
    found = saved("llama")
    half = {name: Aval(a.shape, BY_NAME["bfloat16"]) for name, a in found.avals.items()}
    assert mended(found._replace(avals=half)) == {"dtype": "bfloat16"}


@pytest.mark.parametrize(("name", "key"), [("llama", "attention_bias"), ("llama-biased", "mlp_bias")])
def test_a_bias_that_the_config_does_not_expect_is_told(name: str, key: str) -> None:
    found = saved(name)
    said = found.config[key]
    assert mended(found._replace(config={**found.config, key: not said})) == {key: said}


def test_heads_that_were_pruned_keep_their_width() -> None:
    found = saved("llama")  # four heads and two groups of eight; one head of each group is taken out
    config = {key: value for key, value in found.config.items() if key != "head_dim"}
    pruned = {
        n: Aval((16, 32), a.dtype) if "q_proj" in n else Aval((32, 16), a.dtype) if "o_proj" in n else a
        for n, a in found.avals.items()
    }
    assert mended(Saved(config, pruned)) == {"num_attention_heads": 2, "head_dim": 8}


def test_neurons_pruned_in_one_layer_alone_have_no_patch() -> None:
    found = saved("llama")
    for word, shape in (("gate", (20, 32)), ("up", (20, 32)), ("down", (32, 20))):
        name = f"model.layers.1.mlp.{word}_proj.weight"
        found.avals[name] = Aval(shape, found.avals[name].dtype)
    differs = told(found)
    assert {each.message for each in differs} == {
        "no value of intermediate_size results in 20, but 'model.layers.1.mlp.down_proj.weight' is f32[32,20]"
    }


def entries(kept: list[int]) -> Iterator[tuple[str, str, str]]:
    """The tensors of Gemma 3 with some layers: their names before and after."""
    for name in saved("gemma3").avals:
        if not name.startswith("model.layers."):
            yield name, name, ""
        elif (layer := int(name.split(".")[2])) in kept:
            yield name, name.replace(f"layers.{layer}.", f"layers.{kept.index(layer)}.", 1), ""


def test_lists_over_layers_follow_the_layers_that_stay() -> None:
    found, kept = saved("gemma3"), [0, 1, 5, 6]
    avals = {new: found.avals[old] for old, new, _ in entries(kept)}
    origins = {new: old for old, new, _ in entries(kept)}
    config = settled(found.config, differences(found.config, avals, origins))
    assert config["layer_types"] == [found.config["layer_types"][layer] for layer in kept]
    assert differences(config, avals, origins) == ()


def test_a_list_over_layers_of_unknown_origin_has_no_patch() -> None:
    found = saved("gemma3")
    avals = {new: found.avals[old] for old, new, _ in entries([0, 1, 5, 6])}
    (_, about_list) = differences(found.config, avals)
    assert about_list == ConfigDifference("config.json lists 7 layer_types, and there are 4 layers")


def test_layers_for_predicting_further_tokens_count_apart() -> None:
    found = saved("deepseek_v3")
    last = {n.replace("layers.2.", "layers.3."): a for n, a in found.avals.items() if "layers.2." in n}
    found.avals.update(last | {"model.layers.3.eh_proj.weight": Aval((32, 64), BY_NAME["float32"])})
    assert told(found) == ()


def test_integers_and_packed_bytes_have_no_say_on_sizes() -> None:
    found = saved("llama")
    found.avals["model.layers.0.mlp.up_proj.weight"] = Aval((640, 1), BY_NAME["uint8"])
    assert told(found) == ()


def test_a_config_that_names_no_sizes_is_not_judged() -> None:
    assert differences({"model_type": "llama"}, saved("llama").avals) == ()
