"""What a config.json says of a decoder: the settings of each layer, of its tables and of its head. No arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Literal, NamedTuple

from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.forward.rotary import Rotary, number, rotary_of, yarn_scale

Config = Mapping[str, object]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


class Norm(NamedTuple):
    """A normalization over the last axis, by the root of the mean square. `centred`: the mean is subtracted before.
    `offset` is added to its weight (Gemma stores the weight less 1)."""

    eps: float
    offset: float = 0.0
    centred: bool = False


class Latent(NamedTuple):
    """Queries, keys and values from vectors of low rank (arXiv 2405.04434): the ranks (of queries 0: they have a matrix
    of their own), and the widths of a head: what is not rotated, what is, and values. `norm` is that of the vectors."""

    query_rank: int
    rank: int
    plain: int
    rotated: int
    value: int
    norm: Norm


class Attention(NamedTuple):
    """Self-attention. `window`: how many positions a token sees, itself included (0: all before it). `cap`, `clip`: the
    soft cap of scores, the largest magnitude of queries, keys and values (0: none). `interleaved`: fused queries, keys
    and values stand head by head, else all queries come first. `sinks`: each head has a score that takes part in the
    softmax and adds nothing."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary
    scale: float
    window: int = 0
    cap: float = 0.0
    clip: float = 0.0
    interleaved: bool = False
    sinks: bool = False
    latent: Latent | None = None


class Router(NamedTuple):
    """How experts are chosen: so many with the largest probability; `renormalize`: theirs then sum to 1, times `scale`.
    `sigmoid`: each has a probability of its own, and a correction that counts when they are chosen. Of `groups`, one
    after another, only those `taken` with the best two experts are open to a token."""

    chosen: int
    renormalize: bool
    sigmoid: bool = False
    groups: int = 1
    taken: int = 1
    scale: float = 1.0


class Clamped(NamedTuple):
    """The experts of GPT-OSS: matrices [in, out], gate and up in turn, clamped to `limit`, gated by
    g sigmoid(`alpha` g) (up + 1)."""

    alpha: float
    limit: float


class Layer(NamedTuple):
    """The settings of one layer. `parallel`: attention and MLP read the same residual. `residual`: what both are
    multiplied by before they are added. `transposed`: matrices are stored [in, out]."""

    norm: Norm
    attention: Attention
    activation: Activation
    router: Router | None = None
    parallel: bool = False
    residual: float = 1.0
    transposed: bool = False
    bare_norms: bool = False
    clamped: Clamped | None = None


class Decoder(NamedTuple):
    """A decoder: `family` names the table of its weights; `norm` is the last one. Embeddings are multiplied by
    `embedding`, logits by `logits`, then capped softly by `cap` (0: not). `further`: so many layers after the last
    predict further tokens, and are not computed."""

    family: str
    layers: tuple[Layer, ...]
    vocabulary: int
    tied: bool
    norm: Norm
    embedding: float = 1.0
    logits: float = 1.0
    cap: float = 0.0
    further: int = 0


def decoder_of(config: Config) -> Decoder:
    """The decoder that a config.json describes; that of its `text_config`, if it has one.

    Raises `Refusal` for a `model_type` that has no forward here, and for settings that are missing or not known.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping) and config.get("model_type") in _TOWERS:
        config = {"tie_word_embeddings": config.get("tie_word_embeddings", True), **text}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise Refusal("forward-unsupported", f"config.json says model_type {kind!r}, which has no forward pass here",
                      hint=f"These have: {', '.join(sorted(_READERS))}.")  # fmt: skip
    try:
        return _READERS[kind]({**_DEFAULTS.get(kind, {}), **config})
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
    if config.get("model_type") not in _SLIDING:
        return ["full_attention"] * layers
    types = config.get("layer_types")
    if isinstance(types, list | tuple) and types:
        if len(types) != layers:
            raise Refusal("forward-unsupported", f"config.json has {len(types)} layer_types and {layers} layers",
                          hint="Give `layer_types` one entry for each layer.")  # fmt: skip
        return [str(t) for t in types]
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", _PERIODS.get(str(
        config.get("model_type")))))  # fmt: skip
    if isinstance(pattern, int) and pattern > 0:
        return ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    window = config.get("sliding_window")
    slides = window is not None and config.get("use_sliding_window", True)
    if slides and str(config.get("model_type")).startswith("qwen"):
        full = _whole(config, "max_window_layers", default=layers)
        return ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
    return ["sliding_attention" if slides else "full_attention"] * layers


_SLIDING = ("mistral", "ministral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3",
            "gemma2", "gemma3_text", "olmo3", "gpt_oss")  # fmt: skip
"""Those that look at `sliding_window`; the others ignore the key."""
_PERIODS = {"gemma2": 2, "gemma3_text": 6, "olmo3": 4, "gpt_oss": 2}
"""Every how many layers attention is full, where older configs do not say so."""


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
    always = config["model_type"] in ("mixtral", "gpt_oss")
    return Router(_whole(config, "num_experts_per_tok"), always or config.get("norm_topk_prob") is True)


# --- Families ---------------------------------------------------------------------------------------------------------

_MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo")
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
_TIED = (*_GEMMAS, "gpt2", "smollm3")
"""Those whose head is the table of embeddings if a config does not say otherwise."""


def _llama_like(config: Config) -> Decoder:
    kind, layers = str(config["model_type"]), _depth(config, "num_hidden_layers")
    gemma = kind in _GEMMAS
    norm = Norm(number(config, "rms_norm_eps", 1e-6), offset=1.0 if gemma else 0.0)
    if kind == "olmo":
        norm = Norm(1e-5, centred=True)
    types = _layer_types(config, layers)
    attention = {each: _attention(config, each) for each in dict.fromkeys(types)}
    rotated = _rotated_layers(config, layers)
    made = tuple(
        Layer(
            norm=norm,
            attention=_drop_rotation(attention[each], rotated, i),
            activation=_activation(config, "gelu_pytorch_tanh" if gemma else "silu"),
            router=_router(config, i) if kind in _MIXTURES else None,
            residual=number(config, "residual_multiplier", 1.0),
            bare_norms=kind == "olmo",
        )
        for i, each in enumerate(types)
    )
    return Decoder(
        family=kind,
        layers=made,
        vocabulary=_whole(config, "vocab_size"),
        tied=config.get("tie_word_embeddings", kind in _TIED) is True,
        norm=norm,
        embedding=sqrt(_whole(config, "hidden_size")) if gemma else number(config, "embedding_multiplier", 1.0),
        logits=1 / number(config, "logits_scaling", 1.0),
        cap=number(config, "final_logit_softcapping", 0.0),
    )


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
    tied = config.get("tie_word_embeddings", True) is True
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
    tied = config.get("tie_word_embeddings") is True
    return Decoder("gpt_neox", layers, _whole(config, "vocab_size"), tied, layer.norm)


def _gpt_oss(config: Config) -> Decoder:
    decoder = _llama_like(config)
    clamped = Clamped(number(config, "swiglu_alpha", 1.702), number(config, "swiglu_limit", 7.0))
    layers = tuple(
        layer._replace(
            attention=layer.attention._replace(sinks=True), router=_router(config, i), clamped=clamped,
            norm=Norm(number(config, "rms_norm_eps", 1e-5)),
        )
        for i, layer in enumerate(decoder.layers)
    )  # fmt: skip
    return decoder._replace(layers=layers, norm=layers[0].norm)


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
    tied = config.get("tie_word_embeddings") is True
    return Decoder("deepseek_v3", layers, _whole(config, "vocab_size"), tied, norm, further=further)


def _yarn_scale(config: Config) -> float:
    """What queries and keys are each multiplied by for a longer context, where YaRN asks for it (`mscale_all_dim`)."""
    found = (config.get(key) for key in ("rope_parameters", "rope_scaling"))
    settings = next((each for each in found if isinstance(each, Mapping)), {})
    kind = settings.get("rope_type", settings.get("type", "default"))
    all_dims = number(settings, "mscale_all_dim", 0.0)
    return yarn_scale(number(settings, "factor", 1.0), all_dims) if all_dims and kind != "default" else 1.0


_READERS: Mapping[str, Callable[[Config], Decoder]] = {
    **dict.fromkeys(
        ("llama", "mistral", "ministral", "qwen2", "qwen3", "granite", "smollm3", "phi3", "olmo", "olmo2", "olmo3",
         *_GEMMAS, *_MIXTURES),
        _llama_like,
    ),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek,
}  # fmt: skip
_DEFAULTS: Mapping[str, Config] = {
    "mixtral": {"rope_theta": 1e6},
    "smollm3": {"rope_theta": 2e6, "no_rope_layer_interval": 4},
    "olmo3": {"rope_theta": 5e5},
    "flex_olmo": {"rope_theta": 5e5},
    "gpt_oss": {
        "rope_theta": 1.5e5,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    "gemma2": {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
}
"""What the class of a model takes for keys that its config.json leaves out, where others take something else."""
_TOWERS = ("gemma3", "mistral3", "llava")
"""Models with a decoder of text beside a tower for images."""

FORWARDS = tuple(sorted(_READERS))
"""The `model_type`s that have a forward pass here."""
