"""What Tunix makes of a configuration and a checkpoint. Runs where `google-tunix` is installed.

`python -m tests.behaviour.tunix_model tree CONFIG OUT` writes the key paths and shapes that the model expects; `...
logits CONFIG CHECKPOINT TOKENS OUT` restores an orbax checkpoint and writes what the model says to the tokens; `...
adapted CONFIG CHECKPOINT ADAPTER TOKENS OUT` gives it an adapter before, as qwix keeps one.
"""

# pyright: reportMissingImports=false
# The library is in an environment of its own.

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx
from tunix.models.gemma import model as gemma
from tunix.models.gemma3 import model as gemma3
from tunix.models.llama3 import model as llama3
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen3 import model as qwen3

from tests.behaviour.restored import flat, leaves, mismatches

Config = Mapping[str, Any]


def _sizes(config: Config) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    return {
        "num_layers": config["num_hidden_layers"],
        "embed_dim": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "num_heads": heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "num_kv_heads": config["num_key_value_heads"],
    }


def _dense(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]["rope_theta"]
    return {
        **_sizes(config),
        "vocab_size": config["vocab_size"],
        "rope_theta": rope,
        "norm_eps": config["rms_norm_eps"],
    }


def _gemma2(config: Config) -> gemma.ModelConfig:
    kinds = {"sliding_attention": gemma.AttentionType.LOCAL_SLIDING, "full_attention": gemma.AttentionType.GLOBAL}
    return gemma.ModelConfig(
        **_sizes(config),
        num_embed=config["vocab_size"],
        final_logit_softcap=config["final_logit_softcapping"],
        attn_logits_soft_cap=config["attn_logit_softcapping"],
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attention_types=tuple(kinds[kind] for kind in config["layer_types"]),
        sliding_window_size=config["sliding_window"],
    )


def _gemma3(config: Config) -> gemma3.ModelConfig:
    rope = config["rope_parameters"]
    return gemma3.ModelConfig(
        **_sizes(config),
        num_embed=config["vocab_size"],
        sliding_window_size=config["sliding_window"],
        local_base_frequency=config_number(rope["sliding_attention"]["rope_theta"]),
        global_base_frequency=config_number(rope["full_attention"]["rope_theta"]),
        param_dtype=jnp.float32,
    )


def config_number(value: float) -> int:
    """A whole number that JSON wrote as a float."""
    return int(value)


def built(config: Config) -> Any:
    """The model of a Hugging Face configuration, with weights of Tunix's own."""
    rngs, tied = nnx.Rngs(0), config["tie_word_embeddings"]
    match config["model_type"]:
        case "llama" | "mistral":
            return llama3.Llama3(llama3.ModelConfig(**_dense(config), weight_tying=tied), rngs=rngs)
        case "qwen2":
            return qwen2.Qwen2(qwen2.ModelConfig(**_dense(config), use_tied_embedding=tied), rngs=rngs)
        case "qwen3":
            return qwen3.Qwen3(qwen3.ModelConfig(**_dense(config), use_tied_embedding=tied), rngs=rngs)
        case "qwen3_moe":
            experts = {"num_experts": config["num_local_experts"], "num_experts_per_tok": config["num_experts_per_tok"]}
            sizes = {**_dense(config), "hidden_dim": config["moe_intermediate_size"]}
            return qwen3.Qwen3(qwen3.ModelConfig(**sizes, **experts, use_tied_embedding=tied), rngs=rngs)
        case "gemma2":
            return gemma.Gemma(_gemma2(config), rngs=rngs)
        case "gemma3_text":
            return gemma3.Gemma3(_gemma3(config), rngs=rngs)
        case other:
            raise SystemExit(f"no Tunix model for {other}")


def tree(model: Any) -> dict[str, Any]:
    """The parameters of a model by their dotted key paths."""
    return flat(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def restored(model: Any, checkpoint: str, kind: Any) -> Any:
    """The model with the checkpoint's leaves for its variables of a kind, every one of which it must expect."""
    state, found = nnx.state(model, kind), leaves(checkpoint)
    if wrong := mismatches(found, flat(nnx.to_pure_dict(state))):
        raise SystemExit("\n".join(wrong))
    nnx.update(model, jax.tree.map_with_path(lambda path, _: jnp.asarray(found[_dotted(path)]), state))
    return model


def adapted(model: Any, adapter: str) -> Any:
    """The model with an adapter of rank 3 on the modules that it has factors for, scaled by one."""
    modules = {name.rpartition(".")[0].replace(".", "/") for name in leaves(adapter)}
    provider = qwix.LoraProvider(module_path="|".join(sorted(modules)), rank=3, alpha=3.0)
    made = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=nnx.Rngs(1))
    return restored(made, adapter, nnx.LoRAParam)


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """What the model says to the tokens."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool)), (*tokens.shape, tokens.shape[1]))
    with jax.default_matmul_precision("highest"):
        return np.asarray(model(jnp.asarray(tokens), positions, None, causal)[0])


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path).removesuffix(".value")


def main(verb: str, config: str, *rest: str) -> None:
    """What the command line asks."""
    settings = json.loads(Path(config).read_text())
    if verb == "tree":
        Path(rest[0]).write_text(json.dumps({n: list(x.shape) for n, x in tree(built(settings)).items()}))
        return
    checkpoint, *adapter, tokens, out = rest
    model = restored(built(settings), checkpoint, nnx.Param)
    if verb == "adapted":
        model = adapted(model, *adapter)
    np.save(out, logits(model, np.load(tokens)))


if __name__ == "__main__":
    main(*sys.argv[1:])
