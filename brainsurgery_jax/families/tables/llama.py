"""Llama and all models that name their modules as it does, dense or with experts."""

from __future__ import annotations

from brainsurgery_jax.families.model import Family, ModelType

_V = ("vocab_size",)
_D = ("hidden_size",)
_L = ("num_hidden_layers",)
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
        "layers.*.self_attn.q_proj.bias": "N*H",
        "layers.*.self_attn.k_proj.bias": "K*H",
        "layers.*.self_attn.v_proj.bias": "K*W",
        "layers.*.self_attn.o_proj.bias": "D",
        "layers.*.self_attn.sinks": "N",
        "layers.*.self_attn.qkv_proj.weight": "N*H+K*H+K*H D",
        "layers.*.self_attn.q_norm.weight": "H | N*H",
        "layers.*.self_attn.k_norm.weight": "H | K*H",
        "layers.*.self_attn.q_a_proj.weight": "Q D",
        "layers.*.self_attn.q_b_proj.weight": "N*H Q",
        "layers.*.self_attn.kv_a_proj_with_mqa.weight": "C+R D",
        "layers.*.self_attn.kv_b_proj.weight": "N*(P+W) C",
        "layers.*.self_attn.q_a_layernorm.weight": "Q",
        "layers.*.self_attn.kv_a_layernorm.weight": "C",
        "layers.*.mlp.{gate,up}_proj.weight": "F D",
        "layers.*.mlp.down_proj.weight": "D F",
        "layers.*.mlp.{gate,up}_proj.bias": "F",
        "layers.*.mlp.down_proj.bias": "D",
        "layers.*.mlp.gate_up_proj.weight": "2*F D",
        "layers.*.mlp.{gate,router}.weight": "E D",
        "layers.*.mlp.router.bias": "E",
        "layers.*.mlp.gate.e_score_correction_bias": "E",
        "layers.*.mlp.experts.*.{gate,up}_proj.weight": "M D",
        "layers.*.mlp.experts.*.down_proj.weight": "D M",
        "layers.*.mlp.experts.gate_up_proj": "E 2*M D | E D M*2",
        "layers.*.mlp.experts.down_proj": "E D M | E M D",
        "layers.*.mlp.experts.gate_up_proj_bias": "E M*2",
        "layers.*.mlp.experts.down_proj_bias": "E D",
        "layers.*.mlp.shared_expert.{gate,up}_proj.weight": "S D",
        "layers.*.mlp.shared_expert.down_proj.weight": "D S",
        "layers.*.mlp.shared_expert_gate.weight": "1 D",
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
    writers=(
        "self_attn.o_proj.{weight,bias}", "mlp.down_proj.{weight,bias}", "mlp.experts.*.down_proj.weight",
        "mlp.experts.{down_proj,down_proj_bias}", "mlp.{shared_expert,shared_experts}.down_proj.weight",
        "block_sparse_moe.experts.*.w2.weight",
    ),
    tied=(("^lm_head.weight", "embed_tokens.weight"),),
    fused={
        "layers.*.self_attn.qkv_proj.weight": tuple(f"layers.*.self_attn.{n}_proj.weight" for n in "qkv"),
        "layers.*.mlp.gate_up_proj.weight": ("layers.*.mlp.gate_proj.weight", "layers.*.mlp.up_proj.weight"),
    },
    heads=("N", "K"),
    neurons=("F", "M"),
    last_norm="norm",
    standard={
        "embed_tokens": "embed_tokens", "layers.*.block_sparse_moe": "layers.*.mlp", "norm": "ln_final",
        "^lm_head": "lm_head",
    },
    telling=(
        "attention_norm", "mlp_norm", "after_attention_norm", "after_mlp_norm", "q_norm", "k_norm", "qkv", "kv_a",
    ),
)  # fmt: skip

ROPE = {"rope_theta": 10000.0}
"""The base of the angles that a config.json may leave out, as older ones do."""

PRE_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
"""The norms before attention and MLP, by which classes differ."""
POST_NORMS = {"after_attention_norm": "post_attention_layernorm", "after_mlp_norm": "post_feedforward_layernorm"}
"""Those after both, as OLMo 2 has them."""
BOTH_NORMS = {**PRE_NORMS, **POST_NORMS, "mlp_norm": "pre_feedforward_layernorm"}
"""Those before and after, as Gemma 2 has them."""
QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
"""The norms of queries and keys."""
ATTENTION = {role: f"self_attn.{role}_proj" for role in "qkvo"}
MLP = {role: f"mlp.{role}_proj" for role in ("gate", "up", "down")}
_FUSED = {"qkv": "self_attn.qkv_proj", "o": ATTENTION["o"], "gate_up": "mlp.gate_up_proj", "down": MLP["down"]}

COMMON = {
    **ROPE, "rms_norm_eps": 1e-6, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    "initializer_range": 0.02,
}  # fmt: skip
"""What Llama and Mistral take for keys that are not there."""
_WINDOW = {"sliding_window": None}

MODELS = (
    ModelType(
        "llama", LLAMA, "LlamaForCausalLM", roles={**PRE_NORMS, **ATTENTION, **MLP},
        defaults={**COMMON, **_WINDOW, "max_position_embeddings": 2048},
    ),
    ModelType("granite", LLAMA, "GraniteForCausalLM", roles={**PRE_NORMS, **ATTENTION, **MLP}),
    ModelType(
        "smollm3", LLAMA, "SmolLM3ForCausalLM", tied=True, windowed=True, roles={**PRE_NORMS, **ATTENTION, **MLP},
        defaults={"rope_theta": 2e6, "no_rope_layer_interval": 4},
    ),
    ModelType(
        "phi3", LLAMA, "Phi3ForCausalLM", unfused=("mistral", "llama"), windowed=True, roles={**PRE_NORMS, **_FUSED},
        defaults={
            **COMMON, **_WINDOW, "rms_norm_eps": 1e-5, "eos_token_id": 32000, "pad_token_id": 32000,
            "max_position_embeddings": 4096,
        },
    ),
)  # fmt: skip
