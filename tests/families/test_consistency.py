"""Every kind of inconsistent config.json, planted: each is noted with the patch to write, and refused by an assert.

The table in docs/structure.md has the same sentences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

import brainsurgery_jax as bs
from brainsurgery_jax.config_patch import patch_mapping
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.families.compare import differences
from tests.families.models import Saved, saved

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

Edit = Callable[[Saved], Saved]


def says(**values: Any) -> Edit:
    """Another config."""
    return lambda found: found._replace(config={**found.config, **values})


def lacks(*words: str) -> Edit:
    """The tensors without those that have one of these words in their names."""
    return lambda found: found._replace(avals={n: a for n, a in found.avals.items() if not any(w in n for w in words)})


def holds(pattern: str, *shape: int) -> Edit:
    """Tensors of another shape."""
    return lambda found: found._replace(avals={
        n: Aval(shape, a.dtype) if re.fullmatch(pattern, n) else a for n, a in found.avals.items()
    })  # fmt: skip


def gains(name: str, *shape: int) -> Edit:
    """One tensor more."""

    def edit(found: Saved) -> Saved:
        return found._replace(avals={**found.avals, name: Aval(shape, next(iter(found.avals.values())).dtype)})

    return edit


class Row(NamedTuple):
    """An inconsistency: what it is, the model that it is planted into, and how; the note, and what the patch of all
    notes sets (None: no value of the config would settle it)."""

    sentence: str
    model: str
    edits: tuple[Edit, ...]
    words: str
    patch: Mapping[str, Any] | None


GROUPED = {"n_group": 2, "topk_group": 1}
ROWS = (
    Row("The number of layers is not that of the tensors", "llama", (lacks("layers.2."),),
        "says num_hidden_layers 3, but the tensors have 2", {"num_hidden_layers": 2}),
    Row("A layer in the middle is missing", "llama", (lacks("layers.1."),), "loaders count from 0 without gaps", None),
    Row("A layer lacks a tensor that the others have", "llama", (lacks("layers.1.self_attn.k_proj"),),
        "there is no 'model.layers.1.self_attn.k_proj.weight', which the other layers have", None),
    Row("The tables of words have another size", "llama", (says(vocab_size=64, pad_token_id=None),),
        "says vocab_size 64, but the tensors have 91", {"vocab_size": 91}),
    Row("The input and the output table differ in size", "llama", (holds(r"lm_head\.weight", 96, 32),),
        "no value of vocab_size results in", None),
    Row("A special token is not in the vocabulary", "llama", (says(eos_token_id=[2, 91]),),
        "says eos_token_id [2, 91], and the vocabulary has 91 words", {"eos_token_id": [2]}),
    Row("The width of the model has changed", "llama", (says(hidden_size=48, head_dim=8),),
        "says hidden_size 48, but the tensors have 32", {"hidden_size": 32}),
    Row("The number of heads has changed", "mistral", (says(num_attention_heads=6),),
        "says num_attention_heads 6, but the tensors have 4", {"num_attention_heads": 4}),
    Row("The number of heads of keys and values has changed", "mistral", (says(num_key_value_heads=4),),
        "says num_key_value_heads 4, but the tensors have 2", {"num_key_value_heads": 2}),
    Row("Heads cannot share keys and values evenly", "mistral",
        (holds(r".*[kv]_proj\.weight", 36, 32), says(num_key_value_heads=3)),
        "4 heads cannot share 3 heads of keys and values evenly", None),
    Row("The width of heads has changed", "qwen3", (says(head_dim=16),),
        "says head_dim 16, but the tensors have 12", {"head_dim": 12}),
    Row("The number of neurons has changed", "gemma2", (says(intermediate_size=44),),
        "says intermediate_size 44, but the tensors have 40", {"intermediate_size": 40}),
    Row("Neurons are missing in one layer alone", "llama",
        (holds(r".*1\.mlp\.(gate|up)_proj\.weight", 20, 32), holds(r".*1\.mlp\.down_proj\.weight", 32, 20)),
        "no value of intermediate_size results in 20", None),
    Row("The number of positions has changed", "gpt2", (says(n_positions=64),),
        "says n_positions 64, but the tensors have 48", {"n_positions": 48}),
    Row("The number of experts is not that of the tensors", "mixtral", (says(num_local_experts=8),),
        "says num_local_experts 8, but the tensors have 4", {"num_local_experts": 4}),
    Row("An expert is missing, and its row of the router is not", "mixtral", (lacks("experts.3."),),
        "no value of num_local_experts results in 3", None),
    Row("A token takes more experts than there are", "mixtral", (says(num_experts_per_tok=6),),
        "says num_experts_per_tok 6, and there are 4 experts", {"num_experts_per_tok": 4}),
    Row("Groups of experts hold fewer than a token takes", "deepseek_v3", (says(**GROUPED, num_experts_per_tok=3),),
        "but topk_group 1 leaves 2 experts to choose from", {"num_experts_per_tok": 2}),
    Row("Experts cannot be cut into groups evenly", "deepseek_v3", (says(n_group=3),),
        "says n_group 3, which does not divide 4 experts", {"n_group": 1}),
    Row("A token takes from more groups of experts than there are", "deepseek_v3", (says(n_group=2, topk_group=4),),
        "says topk_group 4, of 2 groups", {"topk_group": 2}),
    Row("A dense model has experts", "llama",
        (lacks(".mlp."), *(gains(f"model.layers.{i}.block_sparse_moe.experts.{e}.{w}.weight", *((32, 40) if w == "w2"
         else (40, 32))) for i in range(3) for e in range(2) for w in ("w1", "w2", "w3"))),
        "model_type 'llama' has no experts, but there is",
        {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 2}),
    Row("Other layers are dense than the config says", "deepseek_v3", (says(first_k_dense_replace=2),),
        "says first_k_dense_replace 2 for layers without experts, but only 0 of the tensors have none",
        {"first_k_dense_replace": 1}),
    Row("Dense layers are listed that have experts", "qwen3_moe", (says(mlp_only_layers=[1]),),
        "says mlp_only_layers [1] for layers without experts, but every layer has some", {"mlp_only_layers": []}),
    Row("Words are tied, and there is an output table", "llama", (says(tie_word_embeddings=True),),
        "says tie_word_embeddings true, but there is 'lm_head.weight'", {"tie_word_embeddings": False}),
    Row("Words are not tied, and there is no output table", "llama", (lacks("lm_head"),),
        "says tie_word_embeddings false, but there is no 'lm_head.weight'", {"tie_word_embeddings": True}),
    Row("The dtype is another one", "llama", (says(dtype="bfloat16"),),
        "says dtype bfloat16, but the tensors are float32", {"dtype": "float32"}),
    Row("The config is of quantized weights, which are not", "llama",
        (says(quantization_config={"quant_method": "fp8"}),),
        "has a quantization_config of fp8, but no tensor is quantized", {"quantization_config": None}),
    Row("The class is of another model_type", "llama", (says(architectures=["Olmo2ForCausalLM"]),),
        "says model_type 'llama', but Olmo2ForCausalLM is a class of 'olmo2'", {"architectures": ["LlamaForCausalLM"]}),
    Row("Layers have norms that the model_type has not", "qwen3",
        (says(model_type="llama", architectures=["LlamaForCausalLM"]),),
        "model_type 'llama' has no 'model.layers.0.self_attn.k_norm.weight', which loaders ignore then",
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}),
    Row("Layers lack norms that the model_type has", "gemma2", (says(model_type="gemma3_text"),),
        "model_type 'gemma3_text' has 'self_attn.k_norm.weight' in its layers, of which there is none",
        {"model_type": "gemma2"}),
    Row("Queries, keys and values are fused, and not in the model_type", "phi3",
        (says(model_type="llama", architectures=["LlamaForCausalLM"]),),
        "model_type 'llama' has no 'model.layers.0.self_attn.qkv_proj.weight'",
        {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}),
    Row("Queries, keys and values are apart, and in one in the model_type", "gpt_neox",
        (lacks("query_key_value"), gains("gpt_neox.layers.0.attention.query.weight", 32, 32)),
        "has 'attention.query_key_value.weight' in its layers, of which there is none",
        None),
    Row("Biases are there that the config does not expect", "llama-biased", (says(attention_bias=False),),
        "says attention_bias false, but there is", {"attention_bias": True}),
    Row("A list over layers has another length", "qwen2", (says(layer_types=["full_attention"] * 4),),
        "lists 4 layer_types, and there are 3 layers", {"layer_types": ["full_attention"] * 3}),
)  # fmt: skip
EACH = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.sentence.replace(" ", "-").lower())
DOCS = Path(__file__).parents[2] / "docs" / "structure.md"


def planted(row: Row) -> Saved:
    found = saved(row.model)
    for edit in row.edits:
        found = edit(found)
    return found


@EACH
def test_the_note_says_what_differs_and_its_patch_settles_it(row: Row) -> None:
    found = planted(row)
    noted = differences(found.config, found.avals)
    assert any(row.words in each.message for each in noted), noted
    config: Mapping[str, Any] = found.config
    for each in noted:
        config = patch_mapping(config, each.patch)
    changed = {key: value for key, value in config.items() if value != found.config.get(key)}
    if row.patch is None:
        assert not any(each.patch for each in noted if row.words in each.message)
    else:
        assert row.patch.items() <= changed.items()
        assert differences(config, found.avals) == ()


@EACH
def test_check_notes_it_and_an_assert_refuses_it_before_anything_is_written(row: Row, here: Path) -> None:
    found = planted(row)
    Path("model").mkdir()
    save_file({n: np.zeros(a.shape, np.float32) for n, a in found.avals.items()}, "model/model.safetensors")
    Path("model/config.json").write_text(json.dumps(found.config))
    plan: dict[str, Any] = {"inputs": ["model/"], "transforms": [], "output": {"path": "out/"}}
    if "says tie_word_embeddings true" in row.words or "the vocabulary has" in row.words:
        # Tables that no step touched are not judged.
        plan["transforms"].append({"scale_": {"target": r"lm_head\.weight|.*embed_tokens\.weight", "by": 2}})
    notes = [d for d in bs.check(bs.load(plan)) if d.code == "config-differs"]
    (said,) = [d for d in notes if row.words in d.message]
    assert said.hint
    for key in row.patch or ():
        assert key in said.hint
    plan["transforms"].append({"assert": {"consistent": "model"}})
    with pytest.raises(PlanError, match="consistent"):
        bs.load(plan).run(durable=False)
    assert not Path("out").exists()


def test_at_least_twenty_kinds_are_planted_and_each_is_in_the_documentation() -> None:
    assert len(ROWS) == len({row.sentence for row in ROWS}) >= 20
    text = DOCS.read_text()
    assert [row.sentence for row in ROWS if f"| {row.sentence} |" not in text] == []
