"""What the configs of merged models must agree on: what a model does with its tensors, and no shape shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

Config = Mapping[str, object]

_USES = (
    "model_type", "num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim",
    "num_experts_per_tok", "hidden_act", "hidden_activation", "activation_function", "feed_forward_proj",
    "position_embedding_type", "partial_rotary_factor", "rotary_pct", "query_pre_attn_scalar", "rms_norm_eps",
    "layer_norm_eps", "layer_norm_epsilon",
)  # fmt: skip
"""Settings by which a model computes something else of the same tensors."""


class SettingDifference(NamedTuple):
    """A setting that two configs have, each another value."""

    key: str
    own: object
    other: object


def differences(own: Config, other: Config) -> Iterator[SettingDifference]:
    """The settings that two configs both have, with other values. What one leaves out, its class may have as well."""
    own, other = _settings(own), _settings(other)
    for key in own:
        if None not in (own[key], other.get(key)) and own[key] != other[key]:
            yield SettingDifference(key, own[key], other[key])


def _settings(config: Config) -> Config:
    """Those of a config, or of the language model in it. What rotary positions are is said in the words of version 5
    of transformers; before it there were two keys."""
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    found = {key: config[key] for key in _USES if key in config}
    rope, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    said = {**(rope if isinstance(rope, Mapping) else {}), **(scaling if isinstance(scaling, Mapping) else {})}
    theta = config.get("rope_theta", said.pop("rope_theta", None))
    if theta is not None:  # of several kinds of layers each has its own
        found |= {"rope_theta": theta, "rope_type": said.pop("rope_type", said.pop("type", "default")), **said}
    return found
