"""The modules of classes whose names differ from those of their checkpoints: PEFT knows the names of modules.

transformers 5 renames when it loads and saves (its `conversion_mapping`).
"""

from __future__ import annotations

import re
from typing import NamedTuple


class NameRule(NamedTuple):
    """What a name of a checkpoint begins or goes on with, and what the module has there."""

    pattern: str
    name: str


_WITHIN = (
    NameRule(r"^(?:model\.)?language_model\.lm_head(?=\.|$)", "lm_head"),
    NameRule(r"^(?:model\.)?language_model\.model(?=\.|$)", "model.language_model"),
    NameRule(r"^language_model(?=\.|$)", "model.language_model"),
    NameRule(r"^(vision_tower|image_tower|video_tower|audio_tower|vision_model|multi_modal_projector)(?=\.|$)",
         r"model.\1"),
    NameRule(r"^(model\.vision_tower)\.vision_model(?=\.|$)", r"\1"),
)  # fmt: skip
"""Of a language model within another."""

_QWEN_VL = (
    NameRule(r"^visual(?=\.|$)", "model.visual"),
    NameRule(r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
)

_VIT = (
    NameRule(r"\bencoder\.layer\.", "layers."),
    NameRule(r"\battention\.attention\.(query|key|value)\b", r"attention.\1"),
    NameRule(r"\battention\.query\b", "attention.q_proj"),
    NameRule(r"\battention\.key\b", "attention.k_proj"),
    NameRule(r"\battention\.value\b", "attention.v_proj"),
    NameRule(r"\battention\.output\.dense\b", "attention.o_proj"),
    NameRule(r"\bintermediate\.dense\b", "mlp.fc1"),
    NameRule(r"\boutput\.dense\b", "mlp.fc2"),
)

_GROUPS: dict[str, tuple[NameRule, ...]] = {
    "llava vipllava llava_next llava_next_video llava_onevision video_llava mllama mistral3 paligemma gemma3 "
    "internvl aya_vision got_ocr2 qwen2_audio voxtral": _WITHIN,
    "qwen2_vl qwen2_5_vl": _QWEN_VL,
    "vit deit": _VIT,
    "gpt_neox": (NameRule(r"^embed_out(?=\.|$)", "lm_head"),),
    "mixtral": (NameRule(r"\.block_sparse_moe(?=\.|$)", ".mlp"),),
}
_RULES = {kind: rules for kinds, rules in _GROUPS.items() for kind in kinds.split()}

_LISTED = (
    "altclip aria audio-spectrogram-transformer audioflamingo3 axk1 axk2 bailing_hybrid beit chmv2 cohere_asr colpali "
    "cosmos3_edge cosmos3_omni csm d_fine deepseek_v4 depth_anything depth_pro dinov2 dinov2_with_registers "
    "dinov3_convnext dinov3_vit dory dots3_note ernie4_5_moe ernie4_5_vl_moe exaone exaone_moe flint fuyu glm5_next "
    "glmasr granite_speech granite_speech_plus granitemoe granitemoehybrid granitemoeshared grounding-dino gte "
    "hrm_text hunyuan_vl hy_v3 hy_v4 hy_v4_vl hyperclovax_vision_v2 ijepa inkling2 inkling_mm_model jev "
    "jina_embeddings_v3 kimi_k25 kimi_linear kolibri1 kyutai_speech_to_text lara_mini lfm3_vl lw_detr mask2former "
    "maskformer mimi mimo_v2_flash minimax minimax_m2 minimax_m3_vl mistral_large4 mm-grounding-dino molmo2 "
    "musicflamingo nemo_speechlm nemotron_h nemotron_h_omni nomic_bert olmo_hybrid oneformer paddleocr_vl phimoe pi0 "
    "pixio pp_chart2table prompt_depth_anything qianfan_ocr qwen2_5_omni qwen2_5_omni_thinker qwen3_omni_moe_thinker "
    "radio rf_detr rt_detr rt_detr_v2 sam3_tracker_video sam3_video sapiens2 sarvam_moe segformer shieldgemma2 "
    "step3p7 swin t5gemma2 timesfm2_5 tipsv2 ultrabert ultravbert unlimited_ocr vibevoice_asr videomae vit_mae "
    "vit_msn vivit voxtral_realtime yolos zoedepth"
)
_OTHERS = frozenset(_LISTED.split())
"""Types of models of which transformers renames tensors in ways that are not written down here."""


def module_name(kind: str, headless: bool, name: str) -> str:
    """The module that a module of a checkpoint becomes. `kind`: the type of the model; `headless`: the class has none,
    and is what others hold as `model`."""
    for rule in _RULES.get(kind, ()):
        name = re.sub(rule.pattern, rule.name, name)
    is_within = _RULES.get(kind) in (_WITHIN, _QWEN_VL)
    return name.removeprefix("model.") if headless and is_within else name


def is_renamed_otherwise(kind: str) -> bool:
    """Whether it is not known what modules of a type of model are called."""
    return kind in _OTHERS
