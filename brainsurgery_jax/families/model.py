"""Families of models, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from brainsurgery_jax.layout.expressions import Config


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Models whose tensors have the same names. Names are written without their prefix, and with `*` in place of
    numbers; `a.{b,c}.d` are two names.

    - `marks`: the family is recognised if one of these names exists, below one of the prefixes `bases`
    - `dims`: sizes as formulas over the keys of config.json; the first formula whose keys exist counts. A formula that
      is a single key determines the key to set.
    - `counts`: the dims that number modules, with `#` in place of the number
    - `shapes`: the shape of each tensor, a formula over dims for each axis, `_` for any size; alternatives follow `|`
    - `longer`: for a counted dim, the formula for the number of modules, if a tensor exists
    - `flags`: keys of config.json that are true if a tensor exists, and false if not
    - `rare`: dims that are assumed to have changed only if changes of others explain nothing
    - `models`: the `model_type`s that the table was tested on. For others, differences without a patch are not
    reported.
    """

    name: str
    marks: tuple[str, ...]
    bases: tuple[str, ...]
    dims: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, str]
    longer: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    rare: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


class ConfigPart(NamedTuple):
    """A part of a config.json (empty: the whole) and the prefixes of the tensors that it describes."""

    key: str
    prefixes: tuple[str, ...]


class FamilyPlace(NamedTuple):
    """A family in a checkpoint: the part of config.json that describes it (its key; empty: the whole), and the start of
    its names: the prefix of the part, then the base of the family."""

    family: Family
    part: str
    config: Config
    whole: Config
    prefix: str
    base: str

    @property
    def kind(self) -> object:
        """Its `model_type`."""
        return self.config.get("model_type", self.whole.get("model_type"))

    def path(self, key: str) -> str:
        """A key, for messages."""
        return f"{self.part}.{key}" if self.part else key

    def describe(self, key: str) -> str:
        """The value of a key in config.json, for messages."""
        value = self.config.get(key)
        text = str(value).lower() if isinstance(value, bool) else value
        return f"config.json has no {self.path(key)}" if value is None else f"config.json says {self.path(key)} {text}"

    def patch(self, values: Config) -> dict[str, object]:
        """A patch for the whole config that sets values of the part."""
        return {self.part: dict(values)} if self.part else dict(values)


class ConfigDifference(NamedTuple):
    """A difference between a config and the tensors. `patch` resolves it if it is not empty, else `moves` do, from
    patterns to templates; `classes`: only another class of models would resolve it."""

    message: str
    patch: Mapping[str, object] = {}
    moves: tuple[tuple[str, str], ...] = ()
    classes: bool = False


WHOLE = ConfigPart("", ("", "text_model.", "vision_model."))

PARTS = (
    ConfigPart(
        "text_config",
        ("language_model.", "model.language_model.", "text_model.", "model.text_model.", "thinker.", "", "model."),
    ),
    ConfigPart(
        "vision_config",
        ("vision_tower.", "model.vision_tower.", "vision_model.", "model.vision_model.", "vision_tower.vision_model.",
         "model.vision_tower.vision_model.", "visual.", "model.visual."),
    ),
    ConfigPart("audio_config", ("audio_tower.", "model.audio_tower.", "audio_model.")),
)  # fmt: skip
"""The parts of models with several towers."""

UNLIKE = frozenset({
    "dory", "ernie4_5_vl_moe_text", "glm5_next_text", "granite_speech5_encoder", "hunyuan_vl_vision", "hy_v4_vl_vision",
    "inkling_text", "kimi_linear", "mllama_text_model", "moshi", "mra", "nystromformer", "pop2piano", "yoso",
})  # fmt: skip
"""Values of `model_type` whose tensors have the names of a family, but other sizes."""

LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "attention_types", "attn_types_list")
"""Keys of lists with an entry for each layer."""

HEADED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining")
"""The endings of the names of classes with an output table."""
