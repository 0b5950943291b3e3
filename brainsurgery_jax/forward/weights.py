"""Where a family of decoders keeps the weights of each role."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.roles import BARE, Roles, layer_roles, other_roles
from brainsurgery_jax.families.tables import MODELS


class Places(NamedTuple):
    """Where tensors are, below the prefix of the model: the layers (`#`: the number of one), the modules of a layer
    (`*`: the number of an expert), the table of embeddings, that of positions (empty: none), the last norm, and, from
    the root, the head. `also`: other modules that may take the place of those of some roles."""

    layer: str
    roles: Roles
    embedding: str
    norm: str
    head: str
    positions: str
    also: Roles

    def place_of(self, slot: str, layer: int) -> str:
        """The name of the tensor in a slot of a layer, below the prefix."""
        role, _, kind = (slot, "", "") if slot in BARE else slot.rpartition(".")
        expert = next((part for part in role.split(".") if part.isdecimal()), "*")
        module = self.roles[role.replace(expert, "*", 1)].replace("*", expert)
        return ".".join(filter(None, (self.layer.replace("#", str(layer)), module, kind)))


def places_of(kind: str) -> Places:
    """The places of a `model_type`, as its entry in the tables of families says."""
    own = MODELS[kind]
    ((head, table),) = own.family.tied
    return Places(
        layer=own.family.counts["L"][0],
        roles=layer_roles(own),
        embedding=table.removesuffix(".weight"),
        norm=own.family.last_norm,
        head=head.removeprefix("^").removesuffix(".weight"),
        positions=own.family.positions,
        also=other_roles(own),
    )


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
    if expert is None or (known := slots.get(_EXPERT.sub("*", local, count=1))) is None:
        return None
    return known.replace("*", expert[1])


def _in_order(by_slot: Mapping[str, str]) -> LayerWeights:
    order = sorted(by_slot)
    return LayerWeights(tuple(order), tuple(by_slot[slot] for slot in order))
