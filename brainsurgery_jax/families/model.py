"""What a family of models is, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Models whose tensors have the same names. Names stand without the prefix in front of them, and with `*` in the
    place of numbers; `a.{b,c}.d` are two names.

    - `marks`: the family is recognised where one of these is there, below one of the prefixes `bases`
    - `dims`: sizes as formulas over the keys of config.json; of several the first whose keys are there. A formula that
      is one key tells which key to set.
    - `counts`: the dims that number modules, `#` in the place of the number
    - `shapes`: the shape of each tensor, a formula over dims for each axis, `_` where nothing is known; alternatives
      stand behind `|`
    - `longer`: counted dims of which there are as many modules as a formula gives, if a tensor is there
    - `flags`: keys of config.json that are true where a tensor is there, and false where it is not
    - `rare`: dims that are taken to have changed only where changes of others explain nothing
    - `models`: the `model_type`s that the table was tried on. Of others nothing is said that no value would settle.
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


class Part(NamedTuple):
    """A part of a config.json (empty: all of it) and the prefixes of the tensors that it describes."""

    key: str
    prefixes: tuple[str, ...]


class Place(NamedTuple):
    """A family in a checkpoint: the part of config.json that describes it (by its key, empty: all of it), and what its
    names begin with: the prefix of the part, then the base of the family."""

    family: Family
    part: str
    config: Mapping[str, Any]
    whole: Mapping[str, Any]
    prefix: str
    base: str

    @property
    def kind(self) -> Any:
        """Its `model_type`."""
        return self.config.get("model_type", self.whole.get("model_type"))

    def path(self, key: str) -> str:
        """A key as messages call it."""
        return f"{self.part}.{key}" if self.part else key

    def said(self, key: str) -> str:
        """What config.json says of a key."""
        value = self.config.get(key)
        told = str(value).lower() if isinstance(value, bool) else value
        return f"config.json has no {self.path(key)}" if value is None else f"config.json says {self.path(key)} {told}"

    def patch(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A patch of the whole that sets values of the part."""
        return {self.part: dict(values)} if self.part else dict(values)


class Difference(NamedTuple):
    """A place where a config and the tensors differ. `patch` settles it if it is not empty, else `moves` do, from
    patterns to templates; `classes`: only another class of models would."""

    message: str
    patch: Mapping[str, Any] = {}
    moves: tuple[tuple[str, str], ...] = ()
    classes: bool = False


WHOLE = Part("", ("", "text_model.", "vision_model."))

PARTS = (
    Part(
        "text_config",
        ("language_model.", "model.language_model.", "text_model.", "model.text_model.", "thinker.", "", "model."),
    ),
    Part(
        "vision_config",
        ("vision_tower.", "model.vision_tower.", "vision_model.", "model.vision_model.", "vision_tower.vision_model.",
         "model.vision_tower.vision_model.", "visual.", "model.visual."),
    ),
    Part("audio_config", ("audio_tower.", "model.audio_tower.", "audio_model.")),
)  # fmt: skip
"""The parts that models of several towers have."""

UNLIKE = frozenset({
    "dory", "ernie4_5_vl_moe_text", "glm5_next_text", "granite_speech5_encoder", "hunyuan_vl_vision", "hy_v4_vl_vision",
    "inkling_text", "kimi_linear", "mllama_text_model", "moshi", "mra", "nystromformer", "pop2piano", "yoso",
})  # fmt: skip
"""Values of `model_type` whose tensors are named as those of a family, and sized otherwise."""

LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "attention_types", "attn_types_list")
"""Keys of lists with an entry for each layer."""

HEADED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining")
"""How the classes end that have an output table."""
