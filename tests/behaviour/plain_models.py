"""Models as functions of plain Flax trees, for architectures whose Flax modules no library keeps any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Tree = Mapping[str, Any]


def dense(p: Tree, x: Array) -> Array:
    """A layer with a kernel [in, out], and perhaps a bias."""
    y = x @ p["kernel"]
    return y + p["bias"] if "bias" in p else y


def norm(p: Tree, x: Array, eps: float) -> Array:
    """Layer normalization."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def attend(q: Array, k: Array, v: Array, heads: int, mask: Any = True) -> Array:
    """Attention of queries to keys, of [batch, token, width] each."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), -1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)


def patches(p: Tree, images: Array) -> Array:
    """Patches of images [batch, height, width, channel] as tokens."""
    size = p["kernel"].shape[0]
    x = jax.lax.conv_general_dilated(
        images, p["kernel"], (size, size), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return x.reshape(len(x), -1, x.shape[-1]) + p.get("bias", 0)


def _attention_of_vit(p: Tree, x: Array, heads: int) -> Array:
    q, k, v = (dense(p["attention"][name], x) for name in ("query", "key", "value"))
    return dense(p["output"]["dense"], attend(q, k, v, heads))


def _tokens_of_vit(e: Tree, images: Array) -> Array:
    x = patches(e["patch_embeddings"]["projection"], images)
    x = jnp.concatenate([jnp.tile(e["cls_token"], (len(x), 1, 1)), x], 1) + e["position_embeddings"]
    if "register_tokens" not in e:
        return x
    return jnp.concatenate([x[:, :1], jnp.tile(e["register_tokens"], (len(x), 1, 1)), x[:, 1:]], 1)


def vit(p: Tree, c: Any, images: Array) -> Array:
    """ViT for classes."""
    x, eps = _tokens_of_vit(p["embeddings"], images), c.layer_norm_eps
    for i in range(c.num_hidden_layers):
        layer = p["encoder"]["layer"][str(i)]
        x = x + _attention_of_vit(layer["attention"], norm(layer["layernorm_before"], x, eps), c.num_attention_heads)
        y = dense(layer["intermediate"]["dense"], norm(layer["layernorm_after"], x, eps))
        x = x + dense(layer["output"]["dense"], jax.nn.gelu(y, approximate=False))
    return dense(p["classifier"], norm(p["layernorm"], x, eps)[:, 0])


def _mlp_of_dino(p: Tree, x: Array) -> Array:
    if "fc1" in p:
        return dense(p["fc2"], jax.nn.gelu(dense(p["fc1"], x), approximate=False))
    gate, up = jnp.split(dense(p["weights_in"], x), 2, -1)
    return dense(p["weights_out"], jax.nn.silu(gate) * up)


def dinov2(p: Tree, c: Any, images: Array) -> Array:
    """DINOv2 for classes."""
    x, eps = _tokens_of_vit(p["embeddings"], images), c.layer_norm_eps
    for i in range(c.num_hidden_layers):
        layer = p["encoder"]["layer"][str(i)]
        y = _attention_of_vit(layer["attention"], norm(layer["norm1"], x, eps), c.num_attention_heads)
        x = x + y * layer["layer_scale1"]["lambda1"]
        x = x + _mlp_of_dino(layer["mlp"], norm(layer["norm2"], x, eps)) * layer["layer_scale2"]["lambda1"]
    x = norm(p["layernorm"], x, eps)
    first = 1 + getattr(c, "num_register_tokens", 0)
    return dense(p["classifier"], jnp.concatenate([x[:, 0], x[:, first:].mean(1)], -1))


def _self_attention(p: Tree, x: Array, of: Array, heads: int, mask: Any = True) -> Array:
    q, (k, v) = dense(p["q_proj"], x), (dense(p[name], of) for name in ("k_proj", "v_proj"))
    return dense(p["out_proj"], attend(q, k, v, heads, mask))


def _causal(x: Array) -> Array:
    return jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))


def _encode(p: Tree, c: Any, x: Array, mask: Any = True) -> Array:
    for i in range(c.num_hidden_layers):
        layer = p["layers"][str(i)]
        y = norm(layer["layer_norm1"], x, c.layer_norm_eps)
        x = x + _self_attention(layer["self_attn"], y, y, c.num_attention_heads, mask)
        y = dense(layer["mlp"]["fc1"], norm(layer["layer_norm2"], x, c.layer_norm_eps))
        x = x + dense(layer["mlp"]["fc2"], y * jax.nn.sigmoid(1.702 * y))
    return x


def clip(p: Tree, c: Any, images: Array, tokens: np.ndarray) -> Array:
    """CLIP: how well each image goes with each text, whose end is its largest token."""
    v, t = p["vision_model"], p["text_model"]
    x = patches(v["embeddings"]["patch_embedding"], images)
    x = jnp.concatenate([jnp.tile(v["embeddings"]["class_embedding"], (len(x), 1, 1)), x], 1)
    x = norm(v["pre_layrnorm"], x + v["embeddings"]["position_embedding"]["embedding"], c.vision_config.layer_norm_eps)
    x = norm(v["post_layernorm"], _encode(v["encoder"], c.vision_config, x)[:, 0], c.vision_config.layer_norm_eps)
    e = t["embeddings"]
    y = e["token_embedding"]["embedding"][tokens] + e["position_embedding"]["embedding"][: tokens.shape[1]]
    y = norm(t["final_layer_norm"], _encode(t["encoder"], c.text_config, y, _causal(y)), c.text_config.layer_norm_eps)
    y = y[np.arange(len(y)), tokens.argmax(-1)]
    image, text = dense(p["visual_projection"], x), dense(p["text_projection"], y)
    image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    return image @ text.T * jnp.exp(p["logit_scale"])


def _conv(p: Tree, x: Array, stride: int) -> Array:
    y = jax.lax.conv_general_dilated(x, p["kernel"], (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"))
    return jax.nn.gelu(y + p["bias"], approximate=False)


def whisper(p: Tree, c: Any, sound: Array, tokens: np.ndarray) -> Array:
    """Whisper, on a spectrogram [batch, time, mel] and tokens. Its head is the table of words."""
    e, d, heads = p["model"]["encoder"], p["model"]["decoder"], c.encoder_attention_heads
    x = _conv(e["conv2"], _conv(e["conv1"], sound, 1), 2) + e["embed_positions"]["embedding"]
    for i in range(c.encoder_layers):
        x = _whisper_layer(e["layers"][str(i)], x, None, heads, True)
    x = norm(e["layer_norm"], x, 1e-5)
    y = d["embed_tokens"]["embedding"][tokens] + d["embed_positions"]["embedding"][: tokens.shape[1]]
    for i in range(c.decoder_layers):
        y = _whisper_layer(d["layers"][str(i)], y, x, heads, _causal(y))
    return norm(d["layer_norm"], y, 1e-5) @ d["embed_tokens"]["embedding"].T


def _whisper_layer(p: Tree, x: Array, heard: Array | None, heads: int, mask: Any) -> Array:
    y = norm(p["self_attn_layer_norm"], x, 1e-5)
    x = x + _self_attention(p["self_attn"], y, y, heads, mask)
    if heard is not None:
        x = x + _self_attention(p["encoder_attn"], norm(p["encoder_attn_layer_norm"], x, 1e-5), heard, heads)
    y = dense(p["fc1"], norm(p["final_layer_norm"], x, 1e-5))
    return x + dense(p["fc2"], jax.nn.gelu(y, approximate=False))


def _rms(p: Tree, x: Array, eps: float) -> Array:
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["kernel"]


def _turn(x: Array, heads: int, base: float) -> Array:
    """Rotary embeddings over neighbouring elements, as complex numbers, the way of EasyLM and of Meta's own code."""
    x = x.reshape(*x.shape[:2], heads, -1, 2)
    angles = jnp.arange(x.shape[1])[:, None] * base ** -(jnp.arange(x.shape[3]) / x.shape[3])
    turned = (x[..., 0] + 1j * x[..., 1]) * jnp.exp(1j * angles)[:, None]
    return jnp.stack([turned.real, turned.imag], -1).reshape(*x.shape[:2], heads, -1)


def easylm_llama(p: Tree, c: Any, tokens: np.ndarray) -> Array:
    """Llama as EasyLM has it."""
    t, heads, groups = p["transformer"], c.num_attention_heads, c.num_attention_heads // c.num_key_value_heads
    x, base = t["wte"]["embedding"][tokens], c.rope_parameters["rope_theta"]
    for i in range(c.num_hidden_layers):
        layer = t["h"][str(i)]
        a, f, y = layer["attention"], layer["feed_forward"], _rms(layer["attention_norm"], x, c.rms_norm_eps)
        q = _turn(dense(a["wq"], y), heads, base)
        k = _turn(dense(a["wk"], y), c.num_key_value_heads, base)
        v = dense(a["wv"], y).reshape(k.shape)
        k, v = (jnp.repeat(z, groups, 2).reshape(*y.shape[:2], -1) for z in (k, v))
        x = x + dense(a["wo"], attend(q.reshape(*y.shape[:2], -1), k, v, heads, _causal(y)))
        y = _rms(layer["ffn_norm"], x, c.rms_norm_eps)
        x = x + dense(f["w2"], jax.nn.silu(dense(f["w1"], y)) * dense(f["w3"], y))
    return dense(p["lm_head"], _rms(t["ln_f"], x, c.rms_norm_eps))
