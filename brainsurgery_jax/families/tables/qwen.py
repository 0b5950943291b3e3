"""Qwen 2 and 3, dense."""

from __future__ import annotations

from brainsurgery_jax.families.model import ModelType
from brainsurgery_jax.families.tables.llama import ATTENTION, LLAMA, MLP, PRE_NORMS, QK_NORMS, ROPE
from brainsurgery_jax.layout.expressions import Config

_DEFAULTS = {**ROPE, "rms_norm_eps": 1e-6}


def settle_window(config: Config) -> Config:
    """The config with the number of layers before those with a window: all, if it has none."""
    return {"max_window_layers": config.get("num_hidden_layers"), **config}


MODELS = (
    ModelType(
        "qwen2",
        LLAMA,
        "Qwen2ForCausalLM",
        windowed=True,
        roles={**PRE_NORMS, **ATTENTION, **MLP},
        defaults=_DEFAULTS,
        settle=settle_window,
    ),
    ModelType(
        "qwen3",
        LLAMA,
        "Qwen3ForCausalLM",
        windowed=True,
        roles={**PRE_NORMS, **ATTENTION, **QK_NORMS, **MLP},
        defaults=_DEFAULTS,
        settle=settle_window,
    ),
)
