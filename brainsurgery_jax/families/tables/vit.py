"""ViT and its kin."""

from __future__ import annotations

from brainsurgery_jax.families.model import Family, ModelType

_D = ("hidden_size",)
_L = ("num_hidden_layers",)
_F = ("intermediate_size",)

VIT = Family(
    name="vit",
    marks=("encoder.layer.*.attention.attention.query.weight",),
    bases=("vit.", "deit.", "beit.", "dinov2.", ""),
    dims={
        "D": _D,
        "F": _F,
        "C": ("num_channels",),
        "P": ("patch_size",),
        "N": ("num_attention_heads",),
        "H": ("hidden_size // num_attention_heads",),
        "L": _L,
    },
    counts={"L": ("encoder.layer.#",)},
    shapes={
        "embeddings.cls_token": "1 1 D",
        "embeddings.patch_embeddings.projection.weight": "D C P P",
        "embeddings.position_embeddings": "1 _ D",
        "embeddings.mask_token": "1 1 D | 1 D",
        "embeddings.patch_embeddings.projection.bias": "D",
        "encoder.layer.*.attention.attention.{query,key,value}.weight": "N*H D",
        "encoder.layer.*.attention.attention.{query,key,value}.bias": "N*H",
        "encoder.layer.*.attention.output.dense.weight": "D N*H",
        "encoder.layer.*.attention.output.dense.bias": "D",
        "encoder.layer.*.{layernorm_before,layernorm_after}.{weight,bias}": "D",
        "encoder.layer.*.intermediate.dense.weight": "F D",
        "encoder.layer.*.intermediate.dense.bias": "F",
        "encoder.layer.*.output.dense.weight": "D F",
        "encoder.layer.*.output.dense.bias": "D",
        "pooler.dense.weight": "D D",
        "pooler.dense.bias": "D",
        "layernorm.{weight,bias}": "D",
    },
    models=("deit", "dinov2", "vit", "vit_mae"),
    writers=("attention.output.dense.{weight,bias}", "output.dense.{weight,bias}"),
)

MODELS = (ModelType("vit", VIT, "ViTForImageClassification"),)
