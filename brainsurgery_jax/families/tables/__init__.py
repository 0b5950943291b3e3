"""The tables: one file for each family of models."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.families.model import Family, ModelType
from brainsurgery_jax.families.tables import (
    bart,
    bert,
    deepseek_v3,
    flex_olmo,
    gemma,
    gpt2,
    gpt_neox,
    gpt_oss,
    llama,
    mixtral,
    olmo,
    olmoe,
    qwen2_moe,
    qwen3_moe,
    t5,
    vit,
)
from brainsurgery_jax.families.tables.bart import BART
from brainsurgery_jax.families.tables.bert import BERT
from brainsurgery_jax.families.tables.clip import TOWER
from brainsurgery_jax.families.tables.gpt2 import GPT2
from brainsurgery_jax.families.tables.gpt_neox import GPT_NEOX
from brainsurgery_jax.families.tables.llama import LLAMA
from brainsurgery_jax.families.tables.t5 import T5
from brainsurgery_jax.families.tables.vit import VIT

FAMILIES: tuple[Family, ...] = (LLAMA, GPT2, GPT_NEOX, BERT, VIT, TOWER, T5, BART)
"""Every family, in the order in which they are tried."""

MODELS: Mapping[str, ModelType] = {
    model.name: model
    for models in (
        llama.MODELS, gpt2.MODELS, gemma.MODELS, olmo.MODELS, mixtral.MODELS, qwen2_moe.MODELS, qwen3_moe.MODELS,
        olmoe.MODELS, gpt_oss.MODELS,
        flex_olmo.MODELS, deepseek_v3.MODELS, gpt_neox.MODELS, bert.MODELS, t5.MODELS, vit.MODELS, bart.MODELS,
    )
    for model in models
}  # fmt: skip
"""What is known of each `model_type`."""
