"""GPT-2."""

from __future__ import annotations

from brainsurgery_jax.families.model import LAYER_NORM, Family, ModelType
from brainsurgery_jax.layout.expressions import Config

_V = ("vocab_size",)

GPT2 = Family(
    name="gpt2",
    marks=("h.*.attn.c_attn.weight", "h.*.attn.q_attn.weight"),
    bases=("transformer.", ""),
    dims={
        "V": _V,
        "D": ("n_embd",),
        "F": ("n_inner", "4 * n_embd"),
        "P": ("n_positions",),
        "N": ("n_head",),
        "H": ("n_embd // n_head",),
        "L": ("n_layer",),
    },
    counts={"L": ("h.#",)},
    shapes={
        "wte.weight": "V D",
        "^lm_head.weight": "V D",
        "wpe.weight": "P D",
        "ln_f.{weight,bias}": "D",
        "h.*.{ln_1,ln_2}.{weight,bias}": "D",
        "h.*.attn.c_attn.weight": "D 3*N*H",
        "h.*.attn.c_attn.bias": "3*N*H",
        "h.*.attn.{q,k,v}_attn.weight": "D N*H",
        "h.*.attn.{q,k,v}_attn.bias": "N*H",
        "h.*.attn.c_proj.weight": "N*H D",
        "h.*.attn.c_proj.bias": "D",
        "h.*.mlp.c_fc.weight": "D F",
        "h.*.mlp.c_fc.bias": "F",
        "h.*.mlp.c_proj.weight": "F D",
        "h.*.mlp.c_proj.bias": "D",
    },
    models=("gpt2", "openai-gpt", "imagegpt"),
    writers=("{attn,mlp}.c_proj.{weight,bias}",),
    fused={
        f"h.*.attn.c_attn.{kind}": tuple(f"h.*.attn.{name}_attn.{kind}" for name in "qkv")
        for kind in ("weight", "bias")
    },
    tied=(("^lm_head.weight", "wte.weight"),),
    last_norm="ln_f",
    positions="wpe",
    telling=("qkv",),
    standard={
        "wte": "embed_tokens",
        "h.*": "layers.*",
        "h.*.attn": "layers.*.self_attn",
        "ln_f": "ln_final",
        "^lm_head": "lm_head",
    },
)

_ROLES = {
    "attention_norm": "ln_1", "qkv": "attn.c_attn", "o": "attn.c_proj", "mlp_norm": "ln_2", "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}  # fmt: skip


def _settle(config: Config) -> Config:
    plain = config.get("scale_attn_weights", True)
    return {**config, "num_key_value_heads": None, **({} if plain else {"attention_multiplier": 1.0})}


MODELS = (
    ModelType(
        "gpt2", GPT2, "GPT2LMHeadModel", tied=True, roles=_ROLES, norms=LAYER_NORM, settle=_settle,
        defaults={"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"},
        keys={
            "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
            "rms_norm_eps": "layer_norm_epsilon",
        },
    ),
)  # fmt: skip
