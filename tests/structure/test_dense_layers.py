"""Which layers are dense, and which have experts, where config.json says it by numbers: it follows the layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import edit, save_random
from tests.structure.test_untie import logits

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

SPARSE: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 12, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 4, "num_experts": 4, "head_dim": 4, "pad_token_id": 0,
}  # fmt: skip
MIXED: dict[str, tuple[str, str, dict[str, Any], list[int]]] = {
    "glm4_moe": ("Glm4MoeConfig", "Glm4MoeForCausalLM", {"first_k_dense_replace": 2}, [0, 3]),
    "dots1": ("Dots1Config", "Dots1ForCausalLM", {"first_k_dense_replace": 2, "n_shared_experts": 1}, [1]),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {"decoder_sparse_step": 2}, [1]),
    "ernie4_5_moe": ("Ernie4_5_MoeConfig", "Ernie4_5_MoeForCausalLM", {
        "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 4,
        "moe_num_shared_experts": 1}, [0, 2]),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM", {
        "first_k_dense_replace": 2, "n_shared_experts": 1, "kv_lora_rank": 8, "q_lora_rank": None,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "num_key_value_heads": 4}, [1, 4]),
    "llama4": ("Llama4TextConfig", "Llama4ForCausalLM", {
        "interleave_moe_layer_step": 2, "num_local_experts": 4, "intermediate_size_mlp": 24,
        "num_experts_per_tok": 1}, [1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_a_layer_with_experts_stays_one_when_others_are_dropped(name: str, tmp_path: Path):
    config, kind, more, dropped = MIXED[name]
    torch.manual_seed(7)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**SPARSE, **more}))
    save_random(model, tmp_path / "whole")
    whole = getattr(transformers, kind).from_pretrained(tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": dropped}}, {"assert": {"consistent": "model"}})
    found, told = getattr(transformers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    kept = [layer for at, layer in enumerate(whole.model.layers) if at not in dropped]
    for at, layer in enumerate(kept):
        layer.self_attn.layer_idx = at
    whole.model.layers, whole.config.num_hidden_layers = torch.nn.ModuleList(kept), len(kept)
    torch.testing.assert_close(logits(found), logits(whole))


def test_layers_with_experts_that_would_not_follow_each_other_are_refused_and_may_stay_together(tmp_path: Path):
    config, kind, more, _ = MIXED["ernie4_5_moe"]
    save_random(getattr(transformers, kind)(getattr(transformers, config)(**{**SPARSE, **more})), tmp_path / "whole")
    with pytest.raises(PlanError, match=re.escape("would not follow each other any more")) as stopped:
        edit(tmp_path / "whole", tmp_path / "out", {"layers": {"order": ["1:3", "0:1", "3:5", "5:6"]}})
    assert stopped.value.diagnostics[0].hint == "Keep them together."
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"order": ["1:3", "3:5", "0:1", "5:6"]}})
    found = getattr(transformers, kind).from_pretrained(tmp_path / "out")
    assert (found.config.moe_layer_start_index, found.config.moe_layer_end_index) == (0, 3)


def test_a_decoder_of_a_family_with_encoders_has_one_stack(tmp_path: Path):
    config = transformers.OPTConfig(vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=4,
                                    ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(7)
    save_random(transformers.OPTForCausalLM(config), tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": [1]}})
    kind: Any = transformers.OPTForCausalLM
    whole, found = (kind.from_pretrained(tmp_path / folder) for folder in ("whole", "out"))
    kept = [layer for at, layer in enumerate(whole.model.decoder.layers) if at != 1]
    for at, layer in enumerate(kept):
        layer.self_attn.layer_idx = at
    whole.model.decoder.layers = torch.nn.ModuleList(kept)
    torch.testing.assert_close(logits(found), logits(whole))
    with pytest.raises(PlanError, match="This model has those of decoder") as stopped:
        edit(tmp_path / "whole", tmp_path / "out", {"layers": {"drop": [1], "stack": "encoder"}})
    assert stopped.value.diagnostics[0].hint == "Add `stack: decoder`."
    with pytest.raises(PlanError, match="is a opt: how its norms compute is not known") as unknown:
        edit(tmp_path / "whole", tmp_path / "no", {"centre_writing": {}})
    assert unknown.value.diagnostics[0].hint == "Leave the step out."
