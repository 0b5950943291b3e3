"""The towers of CLIP and SigLIP."""

from __future__ import annotations

from brainsurgery_jax.families.model import Family

_V = ("vocab_size",)
_D = ("hidden_size",)
_L = ("num_hidden_layers",)
_F = ("intermediate_size",)

TOWER = Family(
    name="clip",
    marks=("encoder.layers.*.mlp.fc1.weight",),
    bases=("",),
    dims={
        "V": _V,
        "D": _D,
        "F": _F,
        "P": ("patch_size",),
        "C": ("num_channels",),
        "N": ("num_attention_heads",),
        "H": ("hidden_size // num_attention_heads",),
        "L": _L,
    },
    counts={"L": ("encoder.layers.#",)},
    shapes={
        "embeddings.token_embedding.weight": "V D",
        "embeddings.position_embedding.weight": "_ D",
        "embeddings.patch_embedding.weight": "D C P P",
        "embeddings.class_embedding": "D",
        "embeddings.patch_embedding.bias": "D",
        "{pre_layrnorm,post_layernorm,final_layer_norm}.{weight,bias}": "D",
        "encoder.layers.*.self_attn.{q,k,v}_proj.weight": "N*H D",
        "encoder.layers.*.self_attn.{q,k,v}_proj.bias": "N*H",
        "encoder.layers.*.self_attn.out_proj.weight": "D N*H",
        "encoder.layers.*.self_attn.out_proj.bias": "D",
        "encoder.layers.*.{layer_norm1,layer_norm2}.{weight,bias}": "D",
        "encoder.layers.*.mlp.fc1.weight": "F D",
        "encoder.layers.*.mlp.fc1.bias": "F",
        "encoder.layers.*.mlp.fc2.weight": "D F",
        "encoder.layers.*.mlp.fc2.bias": "D",
    },
    models=(
        "clip_text_model",
        "clip_vision_model",
        "siglip_text_model",
        "siglip_vision_model",
        "siglip2_text_model",
        "siglip2_vision_model",
    ),
    writers=("self_attn.out_proj.{weight,bias}", "mlp.fc2.{weight,bias}"),
)
