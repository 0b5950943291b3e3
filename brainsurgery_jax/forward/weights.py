"""Where a family of decoders keeps the weights of each role."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal

Roles = Mapping[str, str]
"""The module of each role within a layer; `#` stands for the number of an expert."""


BARE = frozenset(
    {"sinks", "correction", "experts.gate_up", "experts.down", "experts.gate_up_bias", "experts.down_bias"}
)
"""Roles whose tensors are parameters of their own, neither a `.weight` nor a `.bias`."""


class Places(NamedTuple):
    """Where tensors are, below the prefix of the model: the layers (`#`: the number of one), the table of embeddings,
    that of positions (empty: none), the last norm, and, from the root, the head. `also`: other modules that may take
    the place of those of some roles."""

    layer: str
    roles: Roles
    embedding: str
    norm: str
    head: str
    positions: str = ""
    also: Roles = MappingProxyType({})

    def place_of(self, slot: str, layer: int) -> str:
        """The name of the tensor in a slot of a layer, below the prefix."""
        role, _, kind = (slot, "", "") if slot in BARE else slot.rpartition(".")
        expert = next((part for part in role.split(".") if part.isdecimal()), "#")
        module = self.roles[role.replace(expert, "#", 1)].replace("#", expert)
        return ".".join(filter(None, (self.layer.replace("#", str(layer)), module, kind)))


_ATTENTION = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
_QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_MLP = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_POST = {"after_attention_norm": "post_attention_layernorm", "after_mlp_norm": "post_feedforward_layernorm"}
_EXPERTS = {
    "router": "mlp.gate", "expert.#.gate": "mlp.experts.#.gate_proj", "expert.#.up": "mlp.experts.#.up_proj",
    "expert.#.down": "mlp.experts.#.down_proj", "experts.gate_up": "mlp.experts.gate_up_proj",
    "experts.down": "mlp.experts.down_proj",
}  # fmt: skip
_SHARED = {f"shared.{n}": f"mlp.shared_expert.{n}_proj" for n in ("gate", "up", "down")}
_LATENT = {
    "q": "self_attn.q_proj", "q_a": "self_attn.q_a_proj", "q_a_norm": "self_attn.q_a_layernorm",
    "q_b": "self_attn.q_b_proj", "kv_a": "self_attn.kv_a_proj_with_mqa", "kv_a_norm": "self_attn.kv_a_layernorm",
    "kv_b": "self_attn.kv_b_proj", "o": "self_attn.o_proj",
}  # fmt: skip
_BLOCK = "block_sparse_moe"
_MIXTRAL = {
    "router": f"{_BLOCK}.gate", "expert.#.gate": f"{_BLOCK}.experts.#.w1", "expert.#.up": f"{_BLOCK}.experts.#.w3",
    "expert.#.down": f"{_BLOCK}.experts.#.w2",
}  # fmt: skip


def _llama(*roles: Roles) -> Places:
    joined: dict[str, str] = {}
    for each in roles:
        joined |= each
    return Places("layers.#", joined, "embed_tokens", "norm", "lm_head")


_PLAIN = _llama(_PRE, _ATTENTION, _MLP)
_MIDDLE = {"mlp_norm": "pre_feedforward_layernorm"}

PLACES: Mapping[str, Places] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "granite", "smollm3", "gemma"), _PLAIN),
    "qwen3": _llama(_PRE, _ATTENTION, _QK_NORMS, _MLP),
    "olmo": _llama(_ATTENTION, _MLP),
    "gemma2": _llama(_PRE, _POST, _MIDDLE, _ATTENTION, _MLP),
    "gemma3_text": _llama(_PRE, _POST, _MIDDLE, _ATTENTION, _QK_NORMS, _MLP),
    **dict.fromkeys(("olmo2", "olmo3"), _llama(_POST, _ATTENTION, _QK_NORMS, _MLP)),
    "phi3": _llama(_PRE, {"qkv": "self_attn.qkv_proj", "o": "self_attn.o_proj", "gate_up": "mlp.gate_up_proj",
                          "down": "mlp.down_proj"}),
    "mixtral": _llama(_PRE, _ATTENTION, _EXPERTS, _MIXTRAL)._replace(also={"router": "mlp.gate"}),
    "qwen2_moe": _llama(_PRE, _ATTENTION, _MLP, _EXPERTS, _SHARED, {"shared_gate": "mlp.shared_expert_gate"}),
    "deepseek_v3": _llama(
        _PRE, _LATENT, _MLP, _EXPERTS, {role: name.replace("expert", "experts") for role, name in _SHARED.items()},
        {"correction": "mlp.gate.e_score_correction_bias"},
    ),
    "gpt_oss": _llama(
        _PRE, _ATTENTION,
        {"sinks": "self_attn.sinks", "router": "mlp.router", "experts.gate_up": "mlp.experts.gate_up_proj",
         "experts.down": "mlp.experts.down_proj", "experts.gate_up_bias": "mlp.experts.gate_up_proj_bias",
         "experts.down_bias": "mlp.experts.down_proj_bias"},
    ),
    "qwen3_moe": _llama(_PRE, _ATTENTION, _QK_NORMS, _MLP, _EXPERTS),
    "olmoe": _llama(_PRE, _ATTENTION, _QK_NORMS, _EXPERTS),
    "flex_olmo": _llama(_POST, _ATTENTION, _QK_NORMS, _EXPERTS),
    "gpt2": Places(
        "h.#",
        {"attention_norm": "ln_1", "qkv": "attn.c_attn", "o": "attn.c_proj", "mlp_norm": "ln_2", "up": "mlp.c_fc",
         "down": "mlp.c_proj"},
        "wte", "ln_f", "lm_head", "wpe",
    ),
    "gpt_neox": Places(
        "layers.#",
        {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
         "qkv": "attention.query_key_value", "o": "attention.dense", "up": "mlp.dense_h_to_4h",
         "down": "mlp.dense_4h_to_h"},
        "embed_in", "final_layer_norm", "embed_out",
    ),
}  # fmt: skip
"""The places of each family, by the `family` of its `Decoder`."""

_BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias",
            "attention.rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq")  # fmt: skip
"""Tensors of a layer that old checkpoints hold and no model reads."""
_KINDS = (".weight", ".bias", "")


class LayerWeights(NamedTuple):
    """The weights of a layer: the slot of each (a role, and `.weight` or `.bias`) and its name."""

    slots: tuple[str, ...]
    names: tuple[str, ...]


def prefix_of(places: Places, names: Collection[str]) -> str:
    """What stands before the names of a model. Raises `Refusal` if its table of embeddings is missing."""
    ending = f"{places.embedding}.weight"
    found = sorted((name for name in names if name == ending or name.endswith(f".{ending}")), key=len)
    if not found:
        raise Refusal("forward-incomplete", f"there is no tensor '{ending}', the table of embeddings",
                      hint="Name a whole model: its logits need every layer.")  # fmt: skip
    return found[0].removesuffix(ending)


def refuse_others(places: Places, prefix: str, names: Collection[str]) -> None:
    """Refuse a tensor beside the layers that the forward pass would not read, since it may belong to the function."""
    start = prefix + places.layer.replace("#", "")
    heads = f"{places.head}."
    known = {
        f"{prefix}{module}{kind}" for module in (places.embedding, places.norm, places.positions) for kind in _KINDS
    }
    known |= {f"{heads}weight", f"{heads}bias", f"{prefix}rotary_emb.inv_freq"}
    for name in names:
        if name.startswith((prefix, heads)) and not name.startswith(start) and name not in known:
            raise Refusal("forward-unsupported", f"the forward pass of this family never reads '{name}'",
                          hint="Correct `model_type` in config.json, or remove the tensor.")  # fmt: skip


def layers_of(places: Places, prefix: str, names: Collection[str], unread: range) -> dict[int, LayerWeights]:
    """The weights of each layer but those `unread`. Raises `Refusal` for a tensor of a layer that is of no use to the
    forward pass."""
    start = prefix + places.layer.replace("#", "")
    pattern = re.compile(re.escape(start) + r"(\d+)\.(.+)")
    slots = _slots(places.roles) | _slots(places.also)
    found: dict[int, dict[str, str]] = {}
    for name in names:
        if (at := pattern.fullmatch(name)) is None or at[2] in _BUFFERS or int(at[1]) in unread:
            continue
        if (slot := _slot_of(at[2], slots)) is None:
            raise Refusal("forward-unsupported", f"the forward pass of this family never reads '{name}'",
                          hint="Correct `model_type` in config.json, or remove the tensor.")  # fmt: skip
        found.setdefault(int(at[1]), {})[slot] = name
    return {number: _in_order(found[number]) for number in sorted(found)}


def _slots(roles: Roles) -> dict[str, str]:
    return {module + kind: role + kind for role, module in roles.items() for kind in _KINDS}


_EXPERT = re.compile(r"(?<=experts\.)(\d+)(?=\.)")


def _slot_of(local: str, slots: Mapping[str, str]) -> str | None:
    if (known := slots.get(local)) is not None:
        return known
    expert = _EXPERT.search(local)
    if expert is None or (known := slots.get(_EXPERT.sub("#", local, count=1))) is None:
        return None
    return known.replace("#", expert[1])


def _in_order(by_slot: Mapping[str, str]) -> LayerWeights:
    order = sorted(by_slot)
    return LayerWeights(tuple(order), tuple(by_slot[slot] for slot in order))
