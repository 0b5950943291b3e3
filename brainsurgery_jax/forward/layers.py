"""The kernels of a forward pass: rows of tables to hidden states, one layer, and the head."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from brainsurgery_jax._lazy import Array, Num, Shaped, jax, jnp
from brainsurgery_jax.dtypes import FLOAT32, Aval
from brainsurgery_jax.forward.architecture import Activation, Attention, Layer, Norm, Router
from brainsurgery_jax.forward.rotary import Rotary
from brainsurgery_jax.index.parts import AxisCut, Cuts
from brainsurgery_jax.numerics.math import widen
from brainsurgery_jax.op import Avals, Params, kernel

Weights = Mapping[str, jax.Array]
"""The weights of a layer by their slots."""

HEAD_ROWS = 4096
"""Tokens of the vocabulary whose logits are computed together."""


def _as_hidden(avals: Avals, params: Params) -> Avals:
    return (Aval(avals[0].shape, FLOAT32),)


def _widened(avals: Avals, params: Params) -> int:
    """Bytes of the operands in float32, and of a few activations of the widest of them."""
    tokens = avals[0].shape[0]
    widest = max((max(a.shape) for a in avals[1:] if a.shape), default=1)
    return 4 * (sum(a.size for a in avals if a.dtype.bits != FLOAT32.bits) + 8 * tokens * widest)


@kernel(result=_as_hidden, workspace=_widened)
def embedding(rows: Num[Array, "t d"], *positions: Num[Array, "t d"], factor: float) -> Array:
    """Hidden states [t, d] in float32: rows of the table of embeddings times `factor`, and rows of that of positions."""
    hidden = widen(rows) * jnp.float32(factor)
    return sum((widen(each) for each in positions), hidden).astype(jnp.float32)


@kernel(result=_as_hidden, workspace=_widened)
def layer(x: Num[Array, "t d"], *weights: Shaped[Array, "..."], settings: Layer, slots: tuple[str, ...]) -> Array:
    """Hidden states [t, d] after a layer with these settings; `slots` say what each of the weights is."""
    held = {slot: _float(w) for slot, w in zip(slots, weights, strict=True)}
    attended = _attend(_norm(x, "attention_norm", held, settings), held, settings)
    attended = _norm(attended, "after_attention_norm", held, settings, optional=True) * settings.residual
    between = x if settings.parallel else x + attended
    changed = _mlp(_norm(between, "mlp_norm", held, settings), held, settings)
    changed = _norm(changed, "after_mlp_norm", held, settings, optional=True) * settings.residual
    return (x + attended + changed).astype(jnp.float32)


def _float(w: Array) -> jax.Array:
    return jnp.asarray(w).astype(jnp.float32)


def _norm(x: jax.Array, role: str, held: Weights, settings: Layer, *, optional: bool = False) -> jax.Array:
    """`x` normalized by the weights of a role. A layer without them leaves `x`, unless its norms are bare."""
    weight = held.get(f"{role}.weight")
    if weight is None and (optional or not settings.bare_norms):
        return x
    return normalize(x, weight, held.get(f"{role}.bias"), settings.norm)


def normalize(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None, norm: Norm) -> jax.Array:
    """`x` [..., d] normalized over its last axis, times `weight` [d], plus `bias` [d]."""
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + norm.eps)
    if weight is not None:
        x = x * (weight + norm.offset)
    return x if bias is None else x + bias


def _linear(x: jax.Array, role: str, held: Weights, *, transposed: bool = False) -> jax.Array:
    weight, bias = held[f"{role}.weight"], held.get(f"{role}.bias")
    out = x @ (weight if transposed else weight.T)
    return out if bias is None else out + bias


# --- Attention --------------------------------------------------------------------------------------------------------


def _attend(x: jax.Array, held: Weights, settings: Layer) -> jax.Array:
    how = settings.attention
    q, k, v = (_heads(part, how, held, role, settings.norm) for part, role in zip(_projected(x, held, settings), "qkv",
                                                                                    strict=True))  # fmt: skip
    q, k = (_rotate(each, how.rotary) for each in (q, k))
    k, v = (jnp.repeat(each, how.heads // how.kv_heads, axis=1) for each in (k, v))
    scores = jnp.einsum("qhd,khd->hqk", q, k) * how.scale
    if how.cap:
        scores = how.cap * jnp.tanh(scores / how.cap)
    scores = jnp.where(_seen(x.shape[0], how.window), scores, -jnp.inf)
    mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores, axis=-1), v)
    return _linear(mixed.reshape(x.shape[0], -1), "o", held, transposed=settings.transposed)


def _projected(x: jax.Array, held: Weights, settings: Layer) -> tuple[jax.Array, ...]:
    """Queries, keys and values, each [t, heads * head_dim]."""
    how = settings.attention
    if "qkv.weight" in held:
        fused = _linear(x, "qkv", held, transposed=settings.transposed)
        if how.interleaved:
            by_head = fused.reshape(-1, how.heads, 3, how.head_dim)
            return tuple(by_head[:, :, i].reshape(x.shape[0], -1) for i in range(3))
        q, kv = how.heads * how.head_dim, how.kv_heads * how.head_dim
        parts = fused[:, :q], fused[:, q : q + kv], fused[:, q + kv :]
    else:
        parts = tuple(_linear(x, role, held) for role in "qkv")
    return tuple(jnp.clip(part, -how.clip, how.clip) for part in parts) if how.clip else parts


def _heads(x: jax.Array, how: Attention, held: Weights, role: str, norm: Norm) -> jax.Array:
    """[t, heads, head_dim], normalized head by head or as a whole, as the size of the weights tells."""
    weight = held.get(f"{role}_norm.weight")
    if weight is not None and weight.shape != (how.head_dim,):
        return normalize(x, weight, None, norm).reshape(x.shape[0], -1, how.head_dim)
    split = x.reshape(x.shape[0], -1, how.head_dim)
    return split if weight is None else normalize(split, weight, None, norm)


def _rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Heads [t, heads, head_dim] turned by their positions: pairs are (i, i + half) of the rotated part."""
    if not rotary.frequencies:
        return x
    half = len(rotary.frequencies)
    angles = jnp.arange(x.shape[0], dtype=jnp.float32)[:, None] * jnp.asarray(rotary.frequencies, jnp.float32)
    cos, sin = (f(angles)[:, None, :] * rotary.magnitude for f in (jnp.cos, jnp.sin))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _seen(tokens: int, window: int) -> jax.Array:
    """Which positions [query, key] a token attends to."""
    ahead = jnp.arange(tokens)[:, None] - jnp.arange(tokens)[None, :]
    return (ahead >= 0) & (ahead < window) if window else ahead >= 0


# --- MLP and experts --------------------------------------------------------------------------------------------------


def _mlp(x: jax.Array, held: Weights, settings: Layer) -> jax.Array:
    if "router.weight" in held and settings.router is not None:
        return _experts(x, held, settings.router, settings.activation)
    transposed = settings.transposed
    if "gate_up.weight" in held:
        gate, up = jnp.split(_linear(x, "gate_up", held), 2, axis=-1)
        return _linear(_act(gate, settings.activation) * up, "down", held)
    up = _linear(x, "up", held, transposed=transposed)
    gated = _act(_linear(x, "gate", held), settings.activation) * up if "gate.weight" in held else None
    return _linear(_act(up, settings.activation) if gated is None else gated, "down", held, transposed=transposed)


def _act(x: jax.Array, activation: Activation) -> jax.Array:
    match activation:
        case "silu":
            return jax.nn.silu(x)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "relu":
            return jax.nn.relu(x)
        case "relu2":
            return jnp.square(jax.nn.relu(x))


def _experts(x: jax.Array, held: Weights, router: Router, activation: Activation) -> jax.Array:
    """The experts that the router chooses for each token, each with its probability. Every expert sees every token:
    tokens are few, and the weights are read anyway."""
    chances = jax.nn.softmax(_linear(x, "router", held), axis=-1)
    top, who = jax.lax.top_k(chances, router.chosen)
    if router.renormalize:
        top = top / top.sum(-1, keepdims=True)
    share = jnp.zeros_like(chances).at[jnp.arange(x.shape[0])[:, None], who].set(top)
    outputs = (_expert(x, held, e, activation) * share[:, e, None] for e in range(chances.shape[-1]))
    return sum(outputs, jnp.zeros_like(x))


def _expert(x: jax.Array, held: Weights, e: int, activation: Activation) -> jax.Array:
    if "experts.gate_up" in held:
        gate, up = jnp.split(x @ held["experts.gate_up"][e].T, 2, axis=-1)
        return (_act(gate, activation) * up) @ held["experts.down"][e].T
    gate, up = (_linear(x, f"expert.{e}.{role}", held) for role in ("gate", "up"))
    return _linear(_act(gate, activation) * up, f"expert.{e}.down", held)


# --- The head ---------------------------------------------------------------------------------------------------------


def _logits(avals: Avals, params: Params) -> Avals:
    return (Aval((avals[0].shape[0], avals[1].shape[0]), FLOAT32),)


def _by_rows(avals: Avals, params: Params) -> Cuts:
    """Along the vocabulary: of the table only the rows of a part are needed."""
    return (AxisCut(1, avals[1].shape[0], HEAD_ROWS, (None, 0, *(None for _ in avals[2:]))),)


def _head_workspace(avals: Avals, params: Params) -> int:
    return 4 * (avals[1].size + avals[0].size + prod(_logits(avals, params)[0].shape))


@kernel(result=_logits, parts=_by_rows, workspace=_head_workspace)
def head(
    x: Num[Array, "t d"], table: Num[Array, "v d"], *last: Num[Array, " d"], norm: Norm, factor: float, cap: float
) -> Array:
    """Logits [t, v]: the last norm with its weight and bias `last`, the product with `table`, then the soft cap."""
    weight, bias = (_float(last[i]) if len(last) > i else None for i in range(2))
    out = normalize(_float(x), weight, bias, norm) @ _float(table).T * factor
    return cap * jnp.tanh(out / cap) if cap else out
