"""A config.json as the settings of a decoder. No class is named here: its entry in `families` says what it takes for
keys that are not there, what it calls them, which layers have a window, and how its norms and experts compute."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.model import TOWERS, ModelType
from brainsurgery_jax.families.roles import in_layers
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.forward.rotary import Rotary, number, rotary_of, yarn_scale
from brainsurgery_jax.forward.settings import Activation, Attention, Clamped, Decoder, Latent, Layer, Norm, Router

Config = Mapping[str, object]


def decoder_of(config: Config) -> Decoder:
    """The decoder that a config.json describes; that of its `text_config`, if it has one.

    Raises `Refusal` for a `model_type` that has no forward here, and for settings that are missing or not known.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping) and config.get("model_type") in TOWERS:
        config = {"tie_word_embeddings": config.get("tie_word_embeddings", True), **text}
    kind = config.get("model_type")
    own = MODELS.get(kind) if isinstance(kind, str) else None
    if own is None or not own.roles:
        raise Refusal("forward-unsupported", f"config.json says model_type {kind!r}, which has no forward pass here",
                      hint=f"These have: {', '.join(FORWARDS)}.")  # fmt: skip
    given = {"tie_word_embeddings": own.tied, **own.defaults, **config}
    named = {key: given[theirs] for key, theirs in own.keys.items() if theirs in given}
    try:
        return _read(own.settle({**given, **named}))
    except ArithmeticError as error:  # no heads, or more than the width has
        raise Refusal("forward-unsupported", f"the sizes in config.json do not fit each other: {error}",
                      hint="Copy the config.json of the model again.") from error  # fmt: skip


def _whole(config: Config, *keys: str, default: int | None = None) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if default is None:
        key = _entry(config).keys.get(keys[0], keys[0])
        raise Refusal("forward-unsupported", f"config.json has no {key}", hint=f"Add `{key}` to config.json.")
    return default


MOST_LAYERS = 10_000
"""Layers that a config may say: each is described here, and no model has as many."""


def _depth(config: Config, key: str) -> int:
    layers = _whole(config, key)
    if layers > MOST_LAYERS:
        named = _entry(config).keys.get(key, key)
        raise Refusal("forward-unsupported", f"config.json says {named} {layers}, which is absurd",
                      hint="Copy the config.json of the model again.")  # fmt: skip
    return layers


_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2",
}  # fmt: skip


def _activation(config: Config, default: str) -> Activation:
    found = next((config[key] for key in ("hidden_act", "hidden_activation", "activation_function") if config.get(key)),
                 default)  # fmt: skip
    if (known := _ACTIVATIONS.get(str(found))) is None:
        raise Refusal("forward-unsupported", f"the activation '{found}' is not computed here",
                      hint=f"Known are {', '.join(sorted(_ACTIVATIONS))}.")  # fmt: skip
    return known


# --- Layers one by one ------------------------------------------------------------------------------------------------


def _layer_types(config: Config, layers: int) -> list[str]:
    """For each layer, `full_attention` or `sliding_attention`."""
    own = _entry(config)
    if not own.windowed:
        return ["full_attention"] * layers
    types = config.get("layer_types")
    if isinstance(types, list | tuple) and types:
        if len(types) != layers:
            raise Refusal("forward-unsupported", f"config.json has {len(types)} layer_types and {layers} layers",
                          hint="Give `layer_types` one entry for each layer.")  # fmt: skip
        return [str(t) for t in types]
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", len(own.cycle)))
    if isinstance(pattern, int) and pattern > 0:
        return ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    window = config.get("sliding_window")
    slides = window is not None and config.get("use_sliding_window", True)
    full = config.get("max_window_layers")
    if slides and isinstance(full, int):
        return ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
    return ["sliding_attention" if slides else "full_attention"] * layers


def _rotary(config: Config, kind: str, head: Latent | int) -> Rotary:
    """The rotary embedding of a layer of a type, for heads of a width or of those parts."""
    longest = config.get("max_position_embeddings")
    given = config.get("rope_parameters")
    if isinstance(given, Mapping):
        settings = given[kind] if isinstance(given.get(kind), Mapping) else given
    else:
        scaling = config.get("rope_scaling")
        settings = {
            **(scaling if isinstance(scaling, Mapping) else {}),
            "rope_theta": config.get("rope_theta", 10000.0),
        }
        if kind == "sliding_attention" and "rope_local_base_freq" in config:
            settings = {"rope_theta": config["rope_local_base_freq"]}
    partial = config.get("partial_rotary_factor", config.get("rotary_pct"))
    if partial is not None:
        settings = {"partial_rotary_factor": partial, **settings}
    known = longest if isinstance(longest, int) else None
    if isinstance(head, int):
        return rotary_of(settings, head, known)
    adjacent = config.get("rope_interleave", True) is not False
    return rotary_of(settings, head.rotated, known)._replace(adjacent=adjacent)


def _attention(config: Config, kind: str, index: int) -> Attention:
    """The attention of a layer of a type."""
    own, heads = _entry(config), _whole(config, "num_attention_heads")
    latent = _latent(config) if "kv_a" in own.roles else None
    if latent is None:
        head_dim = _whole(config, "head_dim", default=_whole(config, "hidden_size") // heads)
        scale = number(config, "query_pre_attn_scalar", head_dim) ** -0.5
    else:
        head_dim = latent.plain + latent.rotated
        scale = head_dim**-0.5 * _yarn_scale(config) ** 2
    if config.get("scale_attn_by_inverse_layer_idx") is True:
        scale /= index + 1
    rotates = not own.family.positions and _is_rotated(config, index)
    return Attention(
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", default=heads),
        head_dim=head_dim,
        rotary=_rotary(config, kind, latent or head_dim) if rotates else Rotary(),
        scale=number(config, "attention_multiplier", scale),
        window=_whole(config, "sliding_window", default=0) if kind == "sliding_attention" else 0,
        cap=number(config, "attn_logit_softcapping", 0.0),
        clip=number(config, "clip_qkv", 0.0),
        interleaved="N*3*H" in _shape_of(own, "qkv"),
        latent=latent,
    )


def _is_rotated(config: Config, index: int) -> bool:
    """Whether a layer turns queries and keys: config.json lists 0 for those that do not, or says how many come before
    one that does not."""
    listed, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval")
    if isinstance(listed, list | tuple):
        return bool(listed[index])
    return not (listed is None and isinstance(interval, int) and interval > 0 and (index + 1) % interval == 0)


def _latent(config: Config) -> Latent:
    rank = config.get("q_lora_rank")
    return Latent(
        query_rank=rank if isinstance(rank, int) else 0,
        rank=_whole(config, "kv_lora_rank"),
        plain=_whole(config, "qk_nope_head_dim"),
        rotated=_whole(config, "qk_rope_head_dim"),
        value=_whole(config, "v_head_dim"),
        norm=Norm(1e-6),
    )


def _yarn_scale(config: Config) -> float:
    """What queries and keys are each multiplied by for a longer context, where YaRN asks for it (`mscale_all_dim`)."""
    found = (config.get(key) for key in ("rope_parameters", "rope_scaling"))
    settings = next((each for each in found if isinstance(each, Mapping)), {})
    kind = settings.get("rope_type", settings.get("type", "default"))
    all_dims = number(settings, "mscale_all_dim", 0.0)
    return yarn_scale(number(settings, "factor", 1.0), all_dims) if all_dims and kind != "default" else 1.0


def _router(config: Config, index: int) -> Router | None:
    """How a layer chooses experts; None if it has none."""
    kind, own = _entry(config), _entry(config).experts
    dense, step = config.get("mlp_only_layers"), _whole(config, "decoder_sparse_step", default=1)
    leading = any(index < _whole(config, key) for key in kind.leading)
    if own is None or leading or (isinstance(dense, list | tuple) and index in dense) or (index + 1) % step:
        return None
    router = Router(_whole(config, own.chosen), not own.normalized or config.get(own.normalized) is True)
    if not own.sigmoid:
        return router
    groups, taken = _whole(config, "n_group", default=1), _whole(config, "topk_group", default=1)
    scale = number(config, "routed_scaling_factor", 1.0)
    return router._replace(sigmoid=True, groups=groups, taken=taken, scale=scale)


# --- The whole --------------------------------------------------------------------------------------------------------


def _entry(config: Config) -> ModelType:
    return MODELS[str(config["model_type"])]


def _shape_of(own: ModelType, role: str) -> str:
    """The shape of the matrix of a role, as the table of the family has it; empty if there is none."""
    return own.family.shapes.get(f"{in_layers(own.family, own.roles[role])}.weight", "") if role in own.roles else ""


def _read(config: Config) -> Decoder:
    """The decoder of a config with the keys of Llama."""
    own, layers = _entry(config), _depth(config, "num_hidden_layers")
    assert own.norms is not None
    norm = Norm(number(config, "rms_norm_eps", 1e-6), offset=1.0 - own.norms.unit, centred=own.norms.centred)
    made = tuple(_layer(config, each, i, norm) for i, each in enumerate(_layer_types(config, layers)))
    return Decoder(
        family=own.name,
        layers=made,
        vocabulary=_whole(config, "vocab_size"),
        tied=config["tie_word_embeddings"] is True,
        norm=norm,
        embedding=sqrt(_whole(config, "hidden_size")) if own.scaled else number(config, "embedding_multiplier", 1.0),
        logits=1 / number(config, "logits_scaling", 1.0),
        cap=number(config, "final_logit_softcapping", 0.0),
        further=_whole(config, "num_nextn_predict_layers", default=0),
    )


def _layer(config: Config, kind: str, index: int, norm: Norm) -> Layer:
    own = _entry(config)
    attention = _attention(config, kind, index)
    clamped = own.experts is not None and own.experts.clamped
    return Layer(
        norm=norm,
        attention=attention,
        activation=_activation(config, "silu"),
        router=_router(config, index),
        parallel=config.get("use_parallel_residual") is True,
        residual=number(config, "residual_multiplier", 1.0),
        transposed=_shape_of(own, "o").endswith(" D"),
        bare_norms=not {"attention_norm", "after_attention_norm"} & own.roles.keys(),
        clamped=Clamped(number(config, "swiglu_alpha", 1.0), number(config, "swiglu_limit", 1.0)) if clamped else None,
    )


FORWARDS = tuple(sorted(name for name, own in MODELS.items() if own.roles))
"""The `model_type`s that have a forward pass here."""
