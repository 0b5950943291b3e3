"""The modules of a layer by their roles: `q`, `k`, `v`, `o` of attention, `gate`, `up`, `down` of the MLP, `qkv` and
`gate_up` where several are one, `router`, `expert.*.gate` and so on for experts (`*`: the number), `experts.gate_up`
where those of a layer are stacked, `shared.gate` for the expert of all tokens; `attention_norm`, `mlp_norm` before
both, `after_attention_norm`, `after_mlp_norm` behind them, `q_norm`, `k_norm`; `q_a`, `q_b`, `kv_a`, `kv_b` and their
norms for vectors of low rank."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from brainsurgery_jax.families.model import Experts, Family, ModelType
from brainsurgery_jax.families.tables import MODELS

Roles = Mapping[str, str]

LAYER_ROLES = (
    *"qkvo", "qkv", "gate", "up", "gate_up", "down", "attention_norm", "mlp_norm", "after_attention_norm",
    "after_mlp_norm", "q_norm", "k_norm", "router", "expert.*.gate", "expert.*.up", "expert.*.down", "shared_gate",
    "shared.gate", "shared.up", "shared.down", "sinks", "attention", "mlp",
)  # fmt: skip
"""The roles that a step may give to modules of a layer; the last two: the blocks that hold the others."""

BARE = frozenset(
    {"sinks", "correction", "experts.gate_up", "experts.down", "experts.gate_up_bias", "experts.down_bias"}
)
"""Roles whose tensors are parameters of their own, neither a `.weight` nor a `.bias`."""


def layer_roles(model: ModelType) -> Roles:
    """The module of each role within a layer of a model, experts included."""
    return {**model.roles, **(_expert_roles(model.experts) if model.experts is not None else {})}


def _expert_roles(own: Experts) -> Roles:
    router = own.router.removesuffix(".weight")
    stacked = {f"experts.{role}": f"{own.stacked}.{role}_proj" for role in ("gate_up", "down")}
    if own.transposed:
        biases = {f"{role}_bias": f"{name}_bias" for role, name in stacked.items()}
        return {"router": f"{own.block}.{router}", **stacked, **biases}
    each = {
        f"expert.*.{part.removesuffix('_proj')}": f"{own.block}.experts.*.{name}" for part, name in own.parts.items()
    }
    return {"router": f"{own.block}.{router}", **each, **stacked}


def other_roles(model: ModelType) -> Roles:
    """Modules that may take the place of those of some roles: the router beside experts that are stacked."""
    own = model.experts
    if own is None or own.block == own.dense:
        return {}
    return {"router": f"{own.stacked.removesuffix('.experts')}.{own.router.removesuffix('.weight')}"}


def in_layers(family: Family, module: str) -> str:
    """A module of a layer as the table of a family names it, with `*` for numbers."""
    return f"{family.counts['L'][0].replace('#', '*')}.{module}"


@lru_cache(maxsize=64)
def modules_for(family: Family, *roles: str) -> tuple[str, ...]:
    """The modules that any class of a family has for these roles, with `*` for numbers, as its table names them."""
    kinds = [model for model in MODELS.values() if model.family is family]
    found = [each[role] for role in roles for kind in kinds for each in (layer_roles(kind), other_roles(kind))
             if role in each]  # fmt: skip
    return tuple(in_layers(family, module) for module in dict.fromkeys(found))
