"""A config.json as the settings of a decoder. The entry of its class in `families` says what it takes for keys that are
not there, which layers have a window, and whether words are tied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.model import ModelType
from brainsurgery_jax.families.tables import MODELS
from brainsurgery_jax.forward.rotary import Rotary, number, rotary_of, yarn_scale
from brainsurgery_jax.forward.settings import Activation, Attention, Clamped, Decoder, Latent, Layer, Norm, Router

Config = Mapping[str, object]


def decoder_of(config: Config) -> Decoder:
    """The decoder that a config.json describes; that of its `text_config`, if it has one.

    Raises `Refusal` for a `model_type` that has no forward here, and for settings that are missing or not known.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping) and config.get("model_type") in _TOWERS:
        config = {"tie_word_embeddings": config.get("tie_word_embeddings", True), **text}
    kind = config.get("model_type")
    own = MODELS.get(kind) if isinstance(kind, str) else None
    if own is None or not own.roles:
        raise Refusal("forward-unsupported", f"config.json says model_type {kind!r}, which has no forward pass here",
                      hint=f"These have: {', '.join(FORWARDS)}.")  # fmt: skip
    given = {"tie_word_embeddings": own.tied, **own.defaults, **config}
    try:
        return _READERS.get(own.name, _llama_like)(given)
    except ArithmeticError as error:  # no heads, or more than the width has
        raise Refusal("forward-unsupported", f"the sizes in config.json do not fit each other: {error}",
                      hint="Copy the config.json of the model again.") from error  # fmt: skip


def _whole(config: Config, *keys: str, default: int | None = None) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if default is None:
        raise Refusal("forward-unsupported", f"config.json has no {keys[0]}", hint=f"Add `{keys[0]}` to config.json.")
    return default


MOST_LAYERS = 10_000
"""Layers that a config may say: each is described here, and no model has as many."""


def _depth(config: Config, key: str) -> int:
    layers = _whole(config, key)
    if layers > MOST_LAYERS:
        raise Refusal("forward-unsupported", f"config.json says {key} {layers}, which is absurd",
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
    if slides and own.name.startswith("qwen"):
        full = _whole(config, "max_window_layers", default=layers)
        return ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
    return ["sliding_attention" if slides else "full_attention"] * layers


def _rotary(config: Config, kind: str, head_dim: int) -> Rotary:
    """The rotary embedding of a layer of a type."""
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
    return rotary_of(settings, head_dim, longest if isinstance(longest, int) else None)


def _attention(config: Config, kind: str) -> Attention:
    heads = _whole(config, "num_attention_heads")
    head_dim = _whole(config, "head_dim", default=_whole(config, "hidden_size") // heads)
    window = _whole(config, "sliding_window", default=0) if kind == "sliding_attention" else 0
    scale = number(config, "query_pre_attn_scalar", head_dim) ** -0.5
    return Attention(
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", default=heads),
        head_dim=head_dim,
        rotary=_rotary(config, kind, head_dim),
        scale=number(config, "attention_multiplier", scale),
        window=window,
        cap=number(config, "attn_logit_softcapping", 0.0),
        clip=number(config, "clip_qkv", 0.0),
    )


def _router(config: Config, index: int) -> Router | None:
    """How a layer chooses experts; None if it has none."""
    dense = config.get("mlp_only_layers")
    step = _whole(config, "decoder_sparse_step", default=1)
    if (isinstance(dense, list | tuple) and index in dense) or (index + 1) % step:
        return None
    own = _entry(config).experts
    assert own is not None
    renormalize = not own.normalized or config.get(own.normalized) is True
    return Router(_whole(config, own.chosen), renormalize)


# --- Families ---------------------------------------------------------------------------------------------------------


def _entry(config: Config) -> ModelType:
    return MODELS[str(config["model_type"])]


def _llama_like(config: Config) -> Decoder:
    own, layers = _entry(config), _depth(config, "num_hidden_layers")
    assert own.norms is not None
    norm = Norm(number(config, "rms_norm_eps", 1e-6), offset=1.0 - own.norms.unit)
    types = _layer_types(config, layers)
    attention = {each: _attention(config, each) for each in dict.fromkeys(types)}
    rotated = _rotated_layers(config, layers)
    made = tuple(
        Layer(
            norm=norm,
            attention=_drop_rotation(attention[each], rotated, i),
            activation=_activation(config, "silu"),
            router=_router(config, i) if own.experts is not None else None,
            residual=number(config, "residual_multiplier", 1.0),
        )
        for i, each in enumerate(types)
    )
    return Decoder(
        family=own.name,
        layers=made,
        vocabulary=_whole(config, "vocab_size"),
        tied=config["tie_word_embeddings"] is True,
        norm=norm,
        embedding=sqrt(_whole(config, "hidden_size")) if own.scaled else number(config, "embedding_multiplier", 1.0),
        logits=1 / number(config, "logits_scaling", 1.0),
        cap=number(config, "final_logit_softcapping", 0.0),
    )


def _gemma(config: Config) -> Decoder:
    # Old files say "gelu" and mean its approximation by tanh: transformers reads them so.
    exact = config.get("hidden_act") == "gelu"
    return _llama_like({**config, "hidden_act": "gelu_pytorch_tanh"} if exact else config)


def _olmo(config: Config) -> Decoder:
    decoder, norm = _llama_like(config), Norm(1e-5, centred=True)
    layers = tuple(layer._replace(norm=norm, bare_norms=True) for layer in decoder.layers)
    return decoder._replace(layers=layers, norm=norm)


def _rotated_layers(config: Config, layers: int) -> object:
    """The list that says 0 for each layer without rotation, or none; every so many layers if config.json lists none."""
    listed, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval")
    if listed is None and isinstance(interval, int) and interval > 0:
        return [(layer + 1) % interval for layer in range(layers)]
    return listed


def _drop_rotation(attention: Attention, rotated: object, index: int) -> Attention:
    """The attention of a layer, without rotation where the list of a config says 0."""
    skipped = isinstance(rotated, list | tuple) and not rotated[index]
    return attention._replace(rotary=Rotary()) if skipped else attention


def _gpt2(config: Config) -> Decoder:
    heads, width = _whole(config, "n_head"), _whole(config, "n_embd")
    scale = (width // heads) ** -0.5 if config.get("scale_attn_weights", True) else 1.0
    by_layer = config.get("scale_attn_by_inverse_layer_idx") is True
    norm = Norm(number(config, "layer_norm_epsilon", 1e-5), centred=True)
    made = tuple(
        Layer(
            norm=norm,
            attention=Attention(heads, heads, width // heads, Rotary(), scale / (i + 1) if by_layer else scale),
            activation=_activation(config, "gelu_new"),
            transposed=True,
        )
        for i in range(_depth(config, "n_layer"))
    )
    tied = config["tie_word_embeddings"] is True
    return Decoder("gpt2", made, _whole(config, "vocab_size"), tied, norm)


def _gpt_neox(config: Config) -> Decoder:
    given = config if isinstance(config.get("rope_parameters"), Mapping) else {
        "rotary_pct": 0.25, **config, "rope_theta": number(config, "rotary_emb_base", 10000.0),
    }  # fmt: skip
    layer = Layer(
        norm=Norm(number(config, "layer_norm_eps", 1e-5), centred=True),
        attention=_attention({**given, "num_key_value_heads": None}, "full_attention")._replace(interleaved=True),
        activation=_activation(config, "gelu"),
        parallel=config.get("use_parallel_residual", True) is True,
    )
    layers = (layer,) * _depth(config, "num_hidden_layers")
    tied = config["tie_word_embeddings"] is True
    return Decoder("gpt_neox", layers, _whole(config, "vocab_size"), tied, layer.norm)


def _gpt_oss(config: Config) -> Decoder:
    decoder = _llama_like(config)
    clamped = Clamped(number(config, "swiglu_alpha", 1.702), number(config, "swiglu_limit", 7.0))
    layers = tuple(
        layer._replace(attention=layer.attention._replace(sinks=True), clamped=clamped) for layer in decoder.layers
    )
    return decoder._replace(layers=layers)


def _deepseek(config: Config) -> Decoder:
    rank = config.get("q_lora_rank")
    latent = Latent(
        query_rank=rank if isinstance(rank, int) else 0,
        rank=_whole(config, "kv_lora_rank"),
        plain=_whole(config, "qk_nope_head_dim"),
        rotated=_whole(config, "qk_rope_head_dim"),
        value=_whole(config, "v_head_dim"),
        norm=Norm(1e-6),
    )
    heads, width = _whole(config, "num_attention_heads"), latent.plain + latent.rotated
    rotary = _rotary(config, "full_attention", latent.rotated)
    scale = width**-0.5 * _yarn_scale(config) ** 2
    attention = Attention(
        heads=heads, kv_heads=heads, head_dim=width, scale=scale, latent=latent,
        rotary=rotary._replace(adjacent=config.get("rope_interleave", True) is not False),
    )  # fmt: skip
    norm = Norm(number(config, "rms_norm_eps", 1e-6))
    router = Router(
        _whole(config, "num_experts_per_tok"), config.get("norm_topk_prob", True) is True, sigmoid=True,
        groups=_whole(config, "n_group", default=8), taken=_whole(config, "topk_group", default=4),
        scale=number(config, "routed_scaling_factor", 2.5),
    )  # fmt: skip
    dense, activation = _whole(config, "first_k_dense_replace", default=3), _activation(config, "silu")
    layers = tuple(
        Layer(norm, attention, activation, router if i >= dense else None)
        for i in range(_depth(config, "num_hidden_layers"))
    )
    further = _whole(config, "num_nextn_predict_layers", "num_mtp_layers", default=1)
    tied = config["tie_word_embeddings"] is True
    return Decoder("deepseek_v3", layers, _whole(config, "vocab_size"), tied, norm, further=further)


def _yarn_scale(config: Config) -> float:
    """What queries and keys are each multiplied by for a longer context, where YaRN asks for it (`mscale_all_dim`)."""
    found = (config.get(key) for key in ("rope_parameters", "rope_scaling"))
    settings = next((each for each in found if isinstance(each, Mapping)), {})
    kind = settings.get("rope_type", settings.get("type", "default"))
    all_dims = number(settings, "mscale_all_dim", 0.0)
    return yarn_scale(number(settings, "factor", 1.0), all_dims) if all_dims and kind != "default" else 1.0


_READERS: Mapping[str, Callable[[Config], Decoder]] = {
    "gpt2": _gpt2, "gpt_neox": _gpt_neox, "gpt_oss": _gpt_oss, "deepseek_v3": _deepseek, "gemma": _gemma, "olmo": _olmo,
}  # fmt: skip
"""The readers of classes that compute something else than Llama with other numbers."""
_TOWERS = ("gemma3", "mistral3", "llava")
"""Models with a decoder of text beside a tower for images."""

FORWARDS = tuple(sorted(name for name, own in MODELS.items() if own.roles))
"""The `model_type`s that have a forward pass here."""
