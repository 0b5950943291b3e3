"""The weights that a layer must have, and their shapes, from its settings and from its widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.families.roles import BARE, Roles
from brainsurgery_jax.forward.settings import Attention, Latent, Layer

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""The shapes of the weights of a layer by their slots."""


class LayerSizes(NamedTuple):
    """The width of the residual stream, that of the hidden units of the MLP (of an expert), how many experts, and the
    hidden units of the expert that all tokens share."""

    width: int
    inner: int
    experts: int
    shared: int = 0


def sizes_of(shapes: Shapes, settings: Layer, width: int) -> LayerSizes:
    """The sizes that only the tensors tell: the router has a row for each expert, the last matrix a column for each
    hidden unit."""
    transposed = settings.transposed or settings.clamped is not None
    first = next((slot for slot in shapes if slot.endswith("down.weight") or slot == "experts.down"), None)
    inner = shapes[first][-2 if transposed else -1] if first is not None and len(shapes[first]) > 1 else 0
    router, shared = shapes.get("router.weight", ()), shapes.get("shared.down.weight", ())
    return LayerSizes(width, inner, router[0] if router else 0, shared[-1] if shared else 0)


def needed_slots(roles: Roles, settings: Layer, shapes: Shapes, experts: int) -> Iterator[str]:
    """The slots of the matrices and norms that a layer of a family must have. Experts may be stacked or not."""
    sparse, latent = settings.router is not None, settings.attention.latent
    unused = _SPARSE if not sparse else _DENSE if any(role in _SPARSE for role in roles) else frozenset[str]()
    if latent is not None:
        unused = unused | (_LOW_RANK if not latent.query_rank else frozenset({"q"}))
    for role in roles:
        if not role.startswith("expert") and role not in unused:
            yield role if role in BARE else f"{role}.weight"
    if sparse and ("experts.gate_up" in shapes or "experts.down" in shapes or settings.clamped is not None):
        yield from (role for role in roles if role in BARE and role.startswith("experts."))
    elif sparse:
        yield from (f"expert.{e}.{role}.weight" for e in range(experts) for role in ("gate", "up", "down"))


_DENSE = frozenset({"gate", "up", "down"})
_SPARSE = frozenset({"router", "correction", "shared_gate", "shared.gate", "shared.up", "shared.down"})
_LOW_RANK = frozenset({"q_a", "q_a_norm", "q_b"})


def wanted_shapes(slot: str, settings: Layer, sizes: LayerSizes) -> tuple[Shape, ...]:
    """The shapes that the weight in a slot may have."""
    if slot in BARE:
        return (_bare_shape(slot, settings, sizes),)
    role, _, kind = slot.rpartition(".")
    how = settings.attention
    if role in ("q_norm", "k_norm"):
        return (how.head_dim,), ((how.heads if role == "q_norm" else how.kv_heads) * how.head_dim,)
    if how.latent is not None and role in ("q_a_norm", "kv_a_norm"):
        return ((how.latent.query_rank if role == "q_a_norm" else how.latent.rank,),)
    if role.endswith("norm"):
        return ((sizes.width,),)
    if role.startswith("shared."):
        sizes = sizes._replace(inner=sizes.shared)
    matrices = _matrices(how, sizes) | (_low_rank(how, how.latent, sizes.width) if how.latent is not None else {})
    out, into = matrices[role.rpartition(".")[2]]
    if kind == "bias":
        return ((out,),)
    return ((into, out),) if settings.transposed else ((out, into),)


def _bare_shape(slot: str, settings: Layer, sizes: LayerSizes) -> Shape:
    """The shape of a parameter that is no matrix of a module."""
    experts, inner, width = sizes.experts, sizes.inner, sizes.width
    turned = settings.clamped is not None
    return {
        "sinks": (settings.attention.heads,),
        "correction": (experts,),
        "experts.gate_up": (experts, width, 2 * inner) if turned else (experts, 2 * inner, width),
        "experts.down": (experts, inner, width) if turned else (experts, width, inner),
        "experts.gate_up_bias": (experts, 2 * inner),
        "experts.down_bias": (experts, width),
    }[slot]


def _matrices(how: Attention, sizes: LayerSizes) -> dict[str, tuple[int, int]]:
    """What a matrix gives, and what it takes."""
    width, inner, q, kv = sizes.width, sizes.inner, how.heads * how.head_dim, how.kv_heads * how.head_dim
    return {
        "q": (q, width), "k": (kv, width), "v": (kv, width), "qkv": (q + 2 * kv, width), "o": (width, q),
        "gate": (inner, width), "up": (inner, width), "gate_up": (2 * inner, width), "down": (width, inner),
        "router": (sizes.experts, width), "shared_gate": (1, width),
    }  # fmt: skip


def _low_rank(how: Attention, latent: Latent, width: int) -> dict[str, tuple[int, int]]:
    """The same of those whose keys and values come from vectors of low rank."""
    return {
        "q_a": (latent.query_rank, width), "q_b": (how.heads * how.head_dim, latent.query_rank),
        "kv_a": (latent.rank + latent.rotated, width), "kv_b": (how.heads * (latent.plain + latent.value), latent.rank),
        "o": (width, how.heads * latent.value),
    }  # fmt: skip
