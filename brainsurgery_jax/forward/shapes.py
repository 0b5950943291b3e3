"""The weights that a layer must have, and their shapes, from its settings and from its widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.forward.architecture import Layer
from brainsurgery_jax.forward.weights import Roles

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""The shapes of the weights of a layer by their slots."""


class LayerSizes(NamedTuple):
    """The width of the residual stream, that of the hidden units of the MLP (of an expert), and how many experts."""

    width: int
    inner: int
    experts: int


def sizes_of(shapes: Shapes, settings: Layer, width: int) -> LayerSizes:
    """The sizes that only the tensors tell: the router has a row for each expert, the last matrix a column for each
    hidden unit."""
    axis = 0 if settings.transposed else -1
    first = next((slot for slot in shapes if slot.endswith("down.weight") or slot == "experts.down"), None)
    inner = shapes[first][axis] if first is not None and shapes[first] else 0
    router = shapes.get("router.weight", ())
    return LayerSizes(width, inner, router[0] if router else 0)


def needed_slots(roles: Roles, settings: Layer, shapes: Shapes, experts: int) -> Iterator[str]:
    """The slots of the matrices and norms that a layer of a family must have. Experts may be stacked or not."""
    sparse = settings.router is not None
    for role in roles:
        dense_only = role in ("gate", "up", "down")
        if not role.startswith("expert") and (sparse if role == "router" else not (sparse and dense_only)):
            yield f"{role}.weight"
    if sparse and ("experts.gate_up" in shapes or "experts.down" in shapes):
        yield from ("experts.gate_up", "experts.down")
    elif sparse:
        yield from (f"expert.{e}.{role}.weight" for e in range(experts) for role in ("gate", "up", "down"))


def wanted_shapes(slot: str, settings: Layer, sizes: LayerSizes) -> tuple[Shape, ...]:
    """The shapes that the weight in a slot may have."""
    role, _, kind = slot.rpartition(".")
    head, q, kv = _head_sizes(settings)
    if slot in ("experts.gate_up", "experts.down"):
        rows, columns = (2 * sizes.inner, sizes.width) if slot == "experts.gate_up" else (sizes.width, sizes.inner)
        return ((sizes.experts, rows, columns),)
    if role in ("q_norm", "k_norm"):
        return (head,), (q if role == "q_norm" else kv,)
    if role.endswith("norm"):
        return ((sizes.width,),)
    out, into = _matrix(role.rpartition(".")[2], q, kv, sizes)
    if kind == "bias":
        return ((out,),)
    return ((into, out),) if settings.transposed else ((out, into),)


def _head_sizes(settings: Layer) -> tuple[int, int, int]:
    """The width of a head, of all queries, and of all keys."""
    how = settings.attention
    return how.head_dim, how.heads * how.head_dim, how.kv_heads * how.head_dim


def _matrix(role: str, q: int, kv: int, sizes: LayerSizes) -> tuple[int, int]:
    """What a matrix gives, and what it takes."""
    width, inner = sizes.width, sizes.inner
    return {
        "q": (q, width), "k": (kv, width), "v": (kv, width), "qkv": (q + 2 * kv, width), "o": (width, q),
        "gate": (inner, width), "up": (inner, width), "gate_up": (2 * inner, width), "down": (width, inner),
        "router": (sizes.experts, width),
    }[role]  # fmt: skip
