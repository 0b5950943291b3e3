"""The kernels of a forward pass: rows of tables to hidden states, one layer, and the head."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from brainsurgery_jax._lazy import Array, Num, Shaped, jax, jnp
from brainsurgery_jax.dtypes import BFLOAT16, FLOAT32, Aval
from brainsurgery_jax.forward.rotary import Rotary
from brainsurgery_jax.forward.settings import Activation, Attention, Clamped, Latent, Layer, Norm, Router
from brainsurgery_jax.index.parts import AxisCut, Cuts
from brainsurgery_jax.numerics.math import widen
from brainsurgery_jax.op import Avals, Params, kernel

Weights = Mapping[str, jax.Array]
"""The weights of a layer by their slots."""

HEAD_ROWS = 4096
"""Tokens of the vocabulary whose logits are computed together."""


def _as_hidden(avals: Avals, params: Params) -> Avals:
    return (Aval(avals[0].shape, FLOAT32),)


def _workspace(avals: Avals, params: Params) -> int:
    """Bytes of the matrices in float32 that are not bfloat16, and of a few activations of the widest of them."""
    tokens = avals[0].shape[0]
    widest = max((max(a.shape) for a in avals[1:] if a.shape), default=1)
    return 4 * (sum(a.size for a in avals if a.dtype not in (FLOAT32, BFLOAT16)) + 8 * tokens * widest)


@kernel(result=_as_hidden, workspace=_workspace)
def embedding(rows: Num[Array, "t d"], *positions: Num[Array, "t d"], factor: float) -> Array:
    """Hidden states [t, d] in float32: rows of the table of embeddings times `factor`, and those of positions."""
    hidden = widen(rows) * jnp.float32(factor)
    return sum((widen(each) for each in positions), hidden).astype(jnp.float32)


@kernel(result=_as_hidden, workspace=_workspace)
def layer(x: Num[Array, "t d"], *weights: Shaped[Array, "..."], settings: Layer, slots: tuple[str, ...]) -> Array:
    """Hidden states [t, d] after a layer with these settings; `slots` say what each of the weights is."""
    held = {slot: jnp.asarray(w) for slot, w in zip(slots, weights, strict=True)}
    hidden = _float(x)
    attended = _attend(_norm(hidden, "attention_norm", held, settings), held, settings)
    attended = _norm(attended, "after_attention_norm", held, settings, optional=True) * settings.residual
    between = hidden if settings.parallel else hidden + attended
    changed = _mlp(_norm(between, "mlp_norm", held, settings), held, settings)
    changed = _norm(changed, "after_mlp_norm", held, settings, optional=True) * settings.residual
    return hidden + attended + changed


def _float(w: Array) -> jax.Array:
    return jnp.asarray(w).astype(jnp.float32)


def _norm(x: jax.Array, role: str, held: Weights, settings: Layer, *, optional: bool = False) -> jax.Array:
    """`x` normalized by the weights of a role. A layer without them leaves `x`, unless its norms are bare."""
    weight = held.get(f"{role}.weight")
    if weight is None and (optional or not settings.bare_norms):
        return x
    bias = held.get(f"{role}.bias")
    return normalize(x, *(None if w is None else _float(w) for w in (weight, bias)), norm=settings.norm)


def normalize(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None, *, norm: Norm) -> jax.Array:
    """`x` [..., d] normalized over its last axis, times `weight` [d], plus `bias` [d]."""
    if norm.centred:
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + norm.eps)
    if weight is not None:
        x = x * _row(weight + norm.offset, x)
    return x if bias is None else x + _row(bias, x)


def _row(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values along the last axis of `x`, with as many axes as `x`."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _linear(x: jax.Array, role: str, held: Weights, *, transposed: bool = False) -> jax.Array:
    weight, bias = held[f"{role}.weight"], held.get(f"{role}.bias")
    out = multiply(x, weight, transposed=transposed)
    return out if bias is None else out + _row(_float(bias), out)


def multiply(x: jax.Array, weight: jax.Array, *, transposed: bool = False) -> jax.Array:
    """`x` [t, in] in float32 times a matrix [out, in] (`transposed`: [in, out]).

    A float32 is the sum of three bfloat16, so that a product with a bfloat16 matrix takes three products of bfloat16
    with sums in float32: as exact, without a copy of the matrix, and three times as fast where a CPU has AMX.
    """
    axes = (((1,), (0 if transposed else 1,)), ((), ()))
    if weight.dtype != jnp.bfloat16:
        return jax.lax.dot_general(x, _float(weight), axes, preferred_element_type=jnp.float32)
    parts = jax.lax.dot_general(_split(x), weight, axes, preferred_element_type=jnp.float32)
    high, middle, low = jnp.split(parts, 3)
    return low + middle + high


def _split(x: jax.Array) -> jax.Array:
    """Three matrices of bfloat16 below each other whose sum is `x`."""
    high = x.astype(jnp.bfloat16)
    rest = x - high.astype(jnp.float32)
    middle = rest.astype(jnp.bfloat16)
    return jnp.concatenate([high, middle, (rest - middle.astype(jnp.float32)).astype(jnp.bfloat16)])


# --- Attention --------------------------------------------------------------------------------------------------------


def _attend(x: jax.Array, held: Weights, settings: Layer) -> jax.Array:
    how = settings.attention
    if how.latent is None:
        parts = zip(_project(x, held, settings), "qkv", strict=True)
        q, k, v = (_heads(part, how, held, role, settings.norm) for part, role in parts)
        q, k = (_rotate(each, how.rotary) for each in (q, k))
        k, v = (jnp.repeat(each, how.heads // how.kv_heads, axis=1) for each in (k, v))
    else:
        q, k, v = _low_rank(x, held, how, how.latent)
    scores = jnp.einsum("qhd,khd->hqk", q, k) * how.scale
    if how.cap:
        scores = how.cap * jnp.tanh(scores / how.cap)
    scores = jnp.where(_visible(x.shape[0], how.window)[None], scores, -jnp.inf)
    mixed = jnp.einsum("hqk,khd->qhd", _weigh(scores, held), v)
    return _linear(mixed.reshape(x.shape[0], -1), "o", held, transposed=settings.transposed)


def _weigh(scores: jax.Array, held: Weights) -> jax.Array:
    """The weights [heads, query, key] of scores, which add up to 1, or to less where heads have a sink."""
    if "sinks" not in held:
        return jax.nn.softmax(scores, axis=-1)
    sinks = jnp.broadcast_to(_float(held["sinks"])[:, None, None], (*scores.shape[:2], 1))
    return jax.nn.softmax(jnp.concatenate([scores, sinks], axis=-1), axis=-1)[..., :-1]


def _low_rank(x: jax.Array, held: Weights, how: Attention, latent: Latent) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values [t, heads, width] from vectors of low rank. All heads share the rotated part of keys."""
    tokens, low = x.shape[0], latent.norm
    if "q_a.weight" in held:
        q = _linear(normalize(_linear(x, "q_a", held), _float(held["q_a_norm.weight"]), None, norm=low), "q_b", held)
    else:
        q = _linear(x, "q", held)
    q = q.reshape(tokens, how.heads, how.head_dim)
    both = _linear(x, "kv_a", held)
    vectors = normalize(both[:, : latent.rank], _float(held["kv_a_norm.weight"]), None, norm=low)
    kv = _linear(vectors, "kv_b", held).reshape(tokens, how.heads, latent.plain + latent.value)
    turned = _rotate(both[:, None, latent.rank :], how.rotary)
    shared = jnp.broadcast_to(turned, (tokens, how.heads, latent.rotated))
    q = jnp.concatenate([q[..., : latent.plain], _rotate(q[..., latent.plain :], how.rotary)], axis=-1)
    return q, jnp.concatenate([kv[..., : latent.plain], shared], axis=-1), kv[..., latent.plain :]


def _project(x: jax.Array, held: Weights, settings: Layer) -> tuple[jax.Array, ...]:
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
        return normalize(x, _float(weight), None, norm=norm).reshape(x.shape[0], -1, how.head_dim)
    split = x.reshape(x.shape[0], -1, how.head_dim)
    return split if weight is None else normalize(split, _float(weight), None, norm=norm)


def _rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Heads [t, heads, head_dim] turned by their positions. Pairs that lie beside each other are moved apart, which
    leaves the products of queries and keys as they are."""
    if not rotary.frequencies:
        return x
    half = len(rotary.frequencies)
    angles = jnp.arange(x.shape[0], dtype=jnp.float32)[:, None] * jnp.asarray([rotary.frequencies], jnp.float32)
    cos, sin = (f(angles)[:, None, :] * rotary.magnitude for f in (jnp.cos, jnp.sin))
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    a, b = (turned[..., ::2], turned[..., 1::2]) if rotary.adjacent else (turned[..., :half], turned[..., half:])
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _visible(tokens: int, window: int) -> jax.Array:
    """Which positions [query, key] a token attends to."""
    ahead = jnp.arange(tokens)[:, None] - jnp.arange(tokens)[None, :]
    return (ahead >= 0) & (ahead < window) if window else ahead >= 0


# --- MLP and experts --------------------------------------------------------------------------------------------------


def _mlp(x: jax.Array, held: Weights, settings: Layer) -> jax.Array:
    if "router.weight" in held and settings.router is not None:
        return _experts(x, held, settings.router, settings) + _shared(x, held, settings)
    transposed = settings.transposed
    if "gate_up.weight" in held:
        gate, up = jnp.split(_linear(x, "gate_up", held), 2, axis=-1)
        return _linear(_act(gate, settings.activation) * up, "down", held)
    if "gate.weight" in held:
        return _gated(x, held, "", settings.activation)
    up = _linear(x, "up", held, transposed=transposed)
    return _linear(_act(up, settings.activation), "down", held, transposed=transposed)


def _gated(x: jax.Array, held: Weights, start: str, activation: Activation) -> jax.Array:
    gate, up = (_linear(x, f"{start}{role}", held) for role in ("gate", "up"))
    return _linear(_act(gate, activation) * up, f"{start}down", held)


def _shared(x: jax.Array, held: Weights, settings: Layer) -> jax.Array:
    """The expert that all tokens take, if there is one, gated by itself where it has a gate."""
    if "shared.gate.weight" not in held:
        return jnp.zeros_like(x)
    out = _gated(x, held, "shared.", settings.activation)
    return out * jax.nn.sigmoid(_linear(x, "shared_gate", held)) if "shared_gate.weight" in held else out


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


def _experts(x: jax.Array, held: Weights, router: Router, settings: Layer) -> jax.Array:
    """The experts that the router chooses for each token, each with its probability. Every expert sees every token:
    tokens are few, and the weights are read anyway."""
    scores = _linear(x, "router", held)
    chances = jax.nn.sigmoid(scores) if router.sigmoid else jax.nn.softmax(scores, axis=-1)
    _, who = jax.lax.top_k(_open(chances, held, router), router.chosen)
    top = jnp.take_along_axis(chances, who, axis=-1)
    if router.renormalize:
        top = top / top.sum(-1, keepdims=True)
    share = jnp.zeros_like(chances).at[jnp.arange(x.shape[0])[:, None], who].set(top * router.scale)
    outputs = (_expert(x, held, e, settings) * share[:, e, None] for e in range(chances.shape[-1]))
    return sum(outputs, jnp.zeros_like(x))


def _open(chances: jax.Array, held: Weights, router: Router) -> jax.Array:
    """What experts are chosen by [t, experts]: minus infinity for those of groups that are not open to a token."""
    if "correction" in held:
        chances = chances + _row(_float(held["correction"]), chances)
    if router.groups == 1:
        return chances
    grouped = chances.reshape(chances.shape[0], router.groups, -1)
    best = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))[0].sum(-1)
    _, who = jax.lax.top_k(best, router.taken)
    taken = jnp.zeros_like(best).at[jnp.arange(best.shape[0])[:, None], who].set(1.0)
    return jnp.where(taken[..., None] > 0, grouped, -jnp.inf).reshape(chances.shape)


def _expert(x: jax.Array, held: Weights, e: int, settings: Layer) -> jax.Array:
    if settings.clamped is not None:
        return _clamped(x, held, e, settings.clamped)
    if "experts.gate_up" in held:
        gate, up = jnp.split(multiply(x, held["experts.gate_up"][e]), 2, axis=-1)
        return multiply(_act(gate, settings.activation) * up, held["experts.down"][e])
    return _gated(x, held, f"expert.{e}.", settings.activation)


def _clamped(x: jax.Array, held: Weights, e: int, how: Clamped) -> jax.Array:
    """An expert of GPT-OSS."""

    def apply(x: jax.Array, role: str) -> jax.Array:
        out = multiply(x, held[f"experts.{role}"][e], transposed=True)
        return out + _row(_float(held[f"experts.{role}_bias"][e]), out)

    both = apply(x, "gate_up")
    gate, up = jnp.minimum(both[:, ::2], how.limit), jnp.clip(both[:, 1::2], -how.limit, how.limit)
    return apply((up + 1) * gate * jax.nn.sigmoid(how.alpha * gate), "down")


# --- The head ---------------------------------------------------------------------------------------------------------


def _logits(avals: Avals, params: Params) -> Avals:
    return (Aval((avals[0].shape[0], avals[1].shape[0]), FLOAT32),)


def _by_rows(avals: Avals, params: Params) -> Cuts:
    """Along the vocabulary: of the table, and of the bias, only the rows of a part are needed."""
    last = [None for _ in avals[2:]] if not params["biased"] else [*(None for _ in avals[3:]), 0]
    return (AxisCut(1, avals[1].shape[0], HEAD_ROWS, (None, 0, *last)),)


def _head_workspace(avals: Avals, params: Params) -> int:
    table = 0 if avals[1].dtype in (FLOAT32, BFLOAT16) else avals[1].size
    return 4 * (table + 4 * avals[0].size + 3 * prod(_logits(avals, params)[0].shape))


@kernel(result=_logits, parts=_by_rows, workspace=_head_workspace)
def head(
    x: Num[Array, "t d"],
    table: Num[Array, "v d"],
    *last: Num[Array, "..."],
    norm: Norm,
    factor: float,
    cap: float,
    biased: bool,
) -> Array:
    """Logits [t, v]: the last norm with its weight and bias [d], the product with `table`, then the soft cap. The last
    of `last` is the bias [v] of the head if it is `biased`."""
    norms, biases = (last[:-1], last[-1:]) if biased else (last, ())
    weight, bias = (_float(norms[i]) if len(norms) > i else None for i in range(2))
    out = multiply(normalize(_float(x), weight, bias, norm=norm), jnp.asarray(table))
    out = sum((_row(_float(each), out) for each in biases), out) * factor
    return cap * jnp.tanh(out / cap) if cap else out
