"""The families of decoders: Llama and all that name their modules as it does, GPT-2, GPT-NeoX."""

from __future__ import annotations

from brainsurgery_jax.families.model import Family

_V, _D, _L = ("vocab_size",), ("hidden_size",), ("num_hidden_layers",)
_N = ("num_attention_heads",)
_HEAD = ("head_dim", "hidden_size // num_attention_heads")

LLAMA = Family(
    name="llama",
    marks=(
        "layers.*.self_attn.o_proj.weight", "layers.*.mlp.down_proj.weight", "layers.*.input_layernorm.weight",
        "layers.*.post_attention_layernorm.weight",
    ),
    bases=("model.", ""),
    dims={
        "V": _V,
        "D": _D,
        "F": ("intermediate_size",),
        "M": ("moe_intermediate_size", "intermediate_size"),
        "S": ("shared_expert_intermediate_size",),
        "X": ("n_shared_experts", "num_shared_experts"),
        "E": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
        "H": ("qk_nope_head_dim + qk_rope_head_dim", *_HEAD),
        "W": ("v_head_dim", *_HEAD),
        "P": ("qk_nope_head_dim",),
        "R": ("qk_rope_head_dim",),
        "Q": ("q_lora_rank",),
        "C": ("kv_lora_rank",),
        "N": _N,
        "K": ("num_key_value_heads", "num_attention_heads"),
        "L": _L,
        "Z": ("num_nextn_predict_layers",),
    },
    counts={
        "L": ("layers.#",),
        "E": ("layers.*.mlp.experts.#", "layers.*.block_sparse_moe.experts.#"),
    },
    shapes={
        "embed_tokens.weight": "V D",
        "^lm_head.weight": "V D",
        "norm.weight": "D",
        "layers.*.{input,post_attention,pre_feedforward,post_feedforward}_layernorm.weight": "D",
        "layers.*.self_attn.q_proj.weight": "N*H D",
        "layers.*.self_attn.k_proj.weight": "K*H D",
        "layers.*.self_attn.v_proj.weight": "K*W D",
        "layers.*.self_attn.o_proj.weight": "D N*W",
        "layers.*.self_attn.qkv_proj.weight": "(N+2*K)*H D",
        "layers.*.self_attn.q_norm.weight": "H | N*H",
        "layers.*.self_attn.k_norm.weight": "H | K*H",
        "layers.*.self_attn.q_a_proj.weight": "Q D",
        "layers.*.self_attn.q_b_proj.weight": "N*H Q",
        "layers.*.self_attn.kv_a_proj_with_mqa.weight": "C+R D",
        "layers.*.self_attn.kv_b_proj.weight": "N*(P+W) C",
        "layers.*.mlp.{gate,up}_proj.weight": "F D",
        "layers.*.mlp.down_proj.weight": "D F",
        "layers.*.mlp.gate_up_proj.weight": "2*F D",
        "layers.*.mlp.{gate,router}.weight": "E D",
        "layers.*.mlp.experts.*.{gate,up}_proj.weight": "M D",
        "layers.*.mlp.experts.*.down_proj.weight": "D M",
        "layers.*.mlp.experts.gate_up_proj": "E 2*M D | E D 2*M",
        "layers.*.mlp.experts.down_proj": "E D M | E M D",
        "layers.*.mlp.shared_expert.{gate,up}_proj.weight": "S D",
        "layers.*.mlp.shared_expert.down_proj.weight": "D S",
        "layers.*.mlp.shared_experts.{gate,up}_proj.weight": "X*M D",
        "layers.*.mlp.shared_experts.down_proj.weight": "D X*M",
        "layers.*.block_sparse_moe.gate.weight": "E D",
        "layers.*.block_sparse_moe.experts.*.{w1,w3}.weight": "M D",
        "layers.*.block_sparse_moe.experts.*.w2.weight": "D M",
    },
    flags={
        "attention_bias": "layers.*.self_attn.q_proj.bias",
        "mlp_bias": "layers.*.mlp.up_proj.bias",
    },
    longer={"L": ("L+Z", "layers.*.eh_proj.weight")},
    rare=("H", "W"),
    models=(
        "arcee", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "flex_olmo", "gemma",
        "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt_oss", "granite", "granitemoe", "hunyuan_v1_dense",
        "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3",
        "phimoe", "qwen2", "qwen2_5_vl_text", "qwen2_moe", "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_vl_moe_text",
        "qwen3_vl_text", "seed_oss", "smollm3", "stablelm", "starcoder2",
    ),
)  # fmt: skip

GPT2 = Family(
    name="gpt2",
    marks=("h.*.attn.c_attn.weight",),
    bases=("transformer.", ""),
    dims={
        "V": _V,
        "D": ("n_embd",),
        "F": ("n_inner", "4 * n_embd"),
        "P": ("n_positions",),
        "L": ("n_layer",),
    },
    counts={"L": ("h.#",)},
    shapes={
        "wte.weight": "V D",
        "^lm_head.weight": "V D",
        "wpe.weight": "P D",
        "ln_f.{weight,bias}": "D",
        "h.*.{ln_1,ln_2}.{weight,bias}": "D",
        "h.*.attn.c_attn.weight": "D 3*D",
        "h.*.attn.c_attn.bias": "3*D",
        "h.*.attn.c_proj.weight": "D D",
        "h.*.attn.c_proj.bias": "D",
        "h.*.mlp.c_fc.weight": "D F",
        "h.*.mlp.c_fc.bias": "F",
        "h.*.mlp.c_proj.weight": "F D",
        "h.*.mlp.c_proj.bias": "D",
    },
    models=("gpt2", "openai-gpt", "imagegpt"),
)

GPT_NEOX = Family(
    name="gpt_neox",
    marks=("layers.*.attention.query_key_value.weight",),
    bases=("gpt_neox.", ""),
    dims={"V": _V, "D": _D, "F": ("intermediate_size",), "L": _L},
    counts={"L": ("layers.#",)},
    shapes={
        "embed_in.weight": "V D",
        "^embed_out.weight": "V D",
        "final_layer_norm.{weight,bias}": "D",
        "layers.*.{input,post_attention}_layernorm.{weight,bias}": "D",
        "layers.*.attention.query_key_value.weight": "3*D D",
        "layers.*.attention.query_key_value.bias": "3*D",
        "layers.*.attention.dense.weight": "D D",
        "layers.*.attention.dense.bias": "D",
        "layers.*.mlp.dense_h_to_4h.weight": "F D",
        "layers.*.mlp.dense_h_to_4h.bias": "F",
        "layers.*.mlp.dense_4h_to_h.weight": "D F",
        "layers.*.mlp.dense_4h_to_h.bias": "D",
    },
    models=("gpt_neox",),
)

DECODERS = (LLAMA, GPT2, GPT_NEOX)
