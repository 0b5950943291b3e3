"""Families of models, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    What changes a model's structure reads the shapes more closely: an axis is a sum of parts that lie one after
    another, and each part a product of factors, the slowest first. `3*N*H` are all queries, then keys, then values;
    `N*3*H` are the three of each head beside each other.

    - `stacks`: the dim that counts the layers of each stack, by what the stack is called
    - `writers`: tensors that a layer adds to the residual stream by; with all of them zero it changes nothing
    - `first`: tensors that the first layer of a stack has alone
    - `tied`: the output tables that a model with tied words does not have, each with the table in its place;
    `tied_of`: those of a `model_type` that calls them otherwise
    - `copied`: what a model has as well if words are not tied, by what takes its place if they are
    - `fused`: tensors that hold several, in the order of the parts of their first axis or of its factor that is a
    number
    - `heads`: the dims of heads and of groups that share keys and values
    - `neurons`: the dims that count the neurons of an MLP, the first that a model has
    - `last_norm`: the norm before the output table, of decoders
    - `positions`: the table of positions, of decoders
    - `standard`: modules of decoders, and what they are called in every family
    - `telling`: the roles whose modules tell one class of the family from another
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
    stacks: Mapping[str, str] = field(default_factory=lambda: {"layers": "L"})
    writers: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    tied_of: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    copied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heads: tuple[str, str] = ("N", "N")
    neurons: tuple[str, ...] = ("F",)
    last_norm: str = ""
    positions: str = ""
    standard: Mapping[str, str] = field(default_factory=dict)
    telling: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether a step describes it: names do not show it."""
        return not self.marks


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """The experts of a `model_type`: names below a layer, and keys of config.json.

    - `block`: where they are; `dense`: where the MLP of a layer without experts is
    - `parts`: what the three matrices are called, by the names of those of the dense MLP
    - `count`, `chosen`, `width`: keys of their number, of how many a token takes, and of their neurons
    - `normalized`: the key that says whether the weights of those taken add up to 1; empty: they always do
    - `of`: the `model_type`s that become one with experts
    - `adds`: norms that only the one with experts has, each with the matrix whose rows it normalizes
    - `biased`: whether attention may have biases
    - `transposed`: all are in two tensors in any case, [experts, in, out], gate and up in turn; none has its own name
    - `clamped`: gate and up are clamped to `swiglu_limit`, and gated by a sigmoid times `swiglu_alpha`, as in GPT-OSS
    - `sigmoid`: each has a probability of its own, and groups of experts are open to a token, as in DeepSeek V3
    """

    block: str
    parts: Mapping[str, str]
    count: str
    chosen: str
    width: str
    normalized: str = ""
    of: tuple[str, ...] = ()
    adds: Mapping[str, str] = field(default_factory=dict)
    biased: bool = True
    transposed: bool = False
    clamped: bool = False
    sigmoid: bool = False
    router: str = "gate.weight"
    dense: str = "mlp"
    stacked: str = "mlp.experts"
    """Where newer versions of transformers have all experts in two tensors, `gate_up_proj` and `down_proj`."""


class NormForm(NamedTuple):
    """How the norms of a class divide what they read: by the root of its mean square, or (`centred`) as LayerNorm by
    its deviation, without the mean. `unit`: the weight that changes nothing; Gemma stores the weight less 1."""

    centred: bool = False
    unit: int = 1


RMS_NORM = NormForm()
LAYER_NORM = NormForm(centred=True)


@dataclass(frozen=True, slots=True, eq=False)
class ModelType:
    """What is known of a `model_type` beside the names of its family.

    - `causal`: the class that predicts words
    - `tied`: whether words are tied if config.json does not say so
    - `cycle`: the types of layers, in turn, if config.json has no `layer_types`; `period`: the key of its length
    - `leading`: keys that count the first layers of a kind; `numbered`: keys that list layers by number
    - `windowed`: whether layers look at `sliding_window`
    - `defaults`: values of keys that config.json may leave out, and that other classes would take otherwise
    - `fixed_heads`: whether the class wants all heads together to be as wide as the model
    - `unfused`: the `model_type`s that have the tensors which it has in one under names of their own
    - `roles`: the modules of a layer, by what each does; of decoders. `families.roles` names the roles.
    - `norms`: how its norms compute; None if a step that describes a model does not say so
    - `scaled`: whether embeddings are multiplied by the root of the width
    - `keys`: what config.json calls what others call by the names of Llama: `{"hidden_size": "n_embd"}`
    - `settle`: of a config with Llama's names and the defaults, the one that says the same by Llama's keys and values
    """

    name: str
    family: Family
    causal: str
    tied: bool = False
    cycle: tuple[str, ...] = ()
    period: str = ""
    leading: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    experts: Experts | None = None
    fixed_heads: bool = False
    unfused: tuple[str, ...] = ()
    windowed: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)
    norms: NormForm | None = RMS_NORM
    scaled: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    settle: Callable[[Config], Config] = dict

    @property
    def features(self) -> frozenset[str]:
        """The tensors of a layer by which the classes of its family differ (empty: it is not told by them)."""
        return frozenset(f"{self.roles[role]}.weight" for role in self.family.telling if role in self.roles)


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

    @property
    def tied(self) -> tuple[tuple[str, str], ...]:
        """The output tables that it may have, each with the table in its place if words are tied."""
        return self.family.tied_of.get(str(self.kind), self.family.tied)

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

TOWERS = ("gemma3", "mistral3", "llava")
"""Values of `model_type` with a decoder of text, as `text_config` describes it, beside a tower for images."""

UNLIKE = frozenset({
    "dory", "ernie4_5_vl_moe_text", "glm5_next_text", "granite_speech5_encoder", "hunyuan_vl_vision", "hy_v4_vl_vision",
    "inkling_text", "kimi_linear", "mllama_text_model", "moshi", "mra", "nystromformer", "pop2piano", "yoso",
})  # fmt: skip
"""Values of `model_type` whose tensors have the names of a family, but other sizes."""

LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "attention_types", "attn_types_list")
"""Keys of lists with an entry for each layer."""

HEADED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining")
"""The endings of the names of classes with an output table."""
