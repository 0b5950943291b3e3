"""GPT-NeoX and Pythia."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.families.model import LAYER_NORM, Family, ModelType
from brainsurgery_jax.layout.expressions import Config

_V = ("vocab_size",)
_D = ("hidden_size",)
_L = ("num_hidden_layers",)

GPT_NEOX = Family(
    name="gpt_neox",
    marks=("layers.*.attention.query_key_value.weight", "layers.*.attention.query.weight"),
    bases=("gpt_neox.", ""),
    dims={
        "V": _V,
        "D": _D,
        "F": ("intermediate_size",),
        "N": ("num_attention_heads",),
        "H": ("hidden_size // num_attention_heads",),
        "L": _L,
    },
    counts={"L": ("layers.#",)},
    shapes={
        "embed_in.weight": "V D",
        "^embed_out.weight": "V D",
        "final_layer_norm.{weight,bias}": "D",
        "layers.*.{input,post_attention}_layernorm.{weight,bias}": "D",
        "layers.*.attention.query_key_value.weight": "N*3*H D",
        "layers.*.attention.query_key_value.bias": "N*3*H",
        "layers.*.attention.{query,key,value}.weight": "N*H D",
        "layers.*.attention.{query,key,value}.bias": "N*H",
        "layers.*.attention.dense.weight": "D N*H",
        "layers.*.attention.dense.bias": "D",
        "layers.*.mlp.dense_h_to_4h.weight": "F D",
        "layers.*.mlp.dense_h_to_4h.bias": "F",
        "layers.*.mlp.dense_4h_to_h.weight": "D F",
        "layers.*.mlp.dense_4h_to_h.bias": "D",
    },
    models=("gpt_neox",),
    writers=("attention.dense.{weight,bias}", "mlp.dense_4h_to_h.{weight,bias}"),
    tied=(("^embed_out.weight", "embed_in.weight"),),
    last_norm="final_layer_norm",
    telling=("qkv",),
    standard={
        "embed_in": "embed_tokens",
        "layers.*.attention": "layers.*.self_attn",
        "final_layer_norm": "ln_final",
        "^embed_out": "lm_head",
    },
    fused={
        f"layers.*.attention.query_key_value.{kind}": tuple(
            f"layers.*.attention.{name}.{kind}" for name in ("query", "key", "value")
        )
        for kind in ("weight", "bias")
    },
)

_ROLES = {
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "qkv": "attention.query_key_value",
    "o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h",
}  # fmt: skip


def _settle(config: Config) -> Config:
    given = {**config, "num_key_value_heads": None}
    if isinstance(config.get("rope_parameters"), Mapping):
        return given
    return {"rotary_pct": 0.25, **given, "rope_theta": config.get("rotary_emb_base", 10000.0)}


MODELS = (
    ModelType(
        "gpt_neox", GPT_NEOX, "GPTNeoXForCausalLM", roles=_ROLES, norms=LAYER_NORM, settle=_settle,
        defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu", "use_parallel_residual": True},
        keys={"rms_norm_eps": "layer_norm_eps"},
    ),
)  # fmt: skip
