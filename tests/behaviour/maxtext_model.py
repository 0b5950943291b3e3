"""What MaxText makes of a configuration and a checkpoint. Runs where `maxtext` is installed.

`python -m tests.behaviour.maxtext_model tree CONFIG SCAN OUT` writes the key paths and shapes of its model; `... tables
CONFIG SCAN SAFETENSORS OUT` converts a Hugging Face checkpoint by MaxText's own tables and hooks into an npz file;
`... logits CONFIG SCAN CHECKPOINT TOKENS OUT` restores an orbax checkpoint and writes what the model says.
"""

# pyright: reportMissingImports=false
# The library is in an environment of its own.

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from maxtext.checkpoint_conversion import to_maxtext
from maxtext.checkpoint_conversion.utils.param_mapping import HOOK_FNS, PARAM_MAPPING
from maxtext.common.checkpointing import load_params_from_path
from maxtext.configs import pyconfig
from maxtext.models import models
from maxtext.utils import maxtext_utils
from safetensors.numpy import load_file

from tests.behaviour.restored import flat, mismatches

Config = Mapping[str, Any]

# The released model whose settings, but for sizes, are those of an architecture.
RELEASED = {
    "llama": "llama3.1-8b",
    "mistral": "mistral-7b",
    "qwen2": "qwen2.5-7b",
    "qwen3": "qwen3-8b",
    "gemma2": "gemma2-2b",
    "gemma3_text": "gemma3-4b",
    "mixtral": "mixtral-8x7b",
    "qwen3_moe": "qwen3-30b-a3b",
    "olmo3": "olmo3-7b",
}


def settings(config: Config, scan: bool) -> Any:
    """MaxText's configuration for a Hugging Face one."""
    kind, heads, layers = config["model_type"], config["num_attention_heads"], config["num_hidden_layers"]
    rope = config["rope_parameters"]
    more: dict[str, Any] = {"rope_max_timescale": int(rope.get("full_attention", rope)["rope_theta"])}
    if kind in ("gemma3_text", "gemma2", "olmo3"):
        more["sliding_window_size"] = config["sliding_window"]
    if kind == "gemma3_text":
        more |= {"rope_linear_scaling_factor": 1.0, "use_multimodal": False}
    elif kind == "olmo3":
        more |= {"rope_type": "default", "rope_interleave": False}
    elif kind == "llama":
        more["rope_use_scale"] = False
    if "num_local_experts" in config:
        width = config.get("moe_intermediate_size", config["intermediate_size"])
        more |= {"num_experts": config["num_local_experts"], "num_experts_per_tok": 2, "base_moe_mlp_dim": width}
        more |= {"sparse_matmul": False, "megablox": False}
    return pyconfig.initialize(
        ["", str(resources.files("maxtext").joinpath("configs", "base.yml"))],
        model_name=RELEASED[kind],
        override_model_config=True,
        base_emb_dim=config["hidden_size"],
        base_mlp_dim=config["intermediate_size"],
        base_num_query_heads=heads,
        base_num_kv_heads=config["num_key_value_heads"],
        base_num_decoder_layers=layers // 2 if kind == "gemma2" else layers,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        logits_via_embedding=config["tie_word_embeddings"],
        normalization_layer_epsilon=config["rms_norm_eps"],
        scan_layers=scan,
        dtype="float32",
        weight_dtype="float32",
        matmul_precision="highest",
        attention="dot_product",
        logits_dot_in_fp32=True,
        float32_qk_product=True,
        float32_logits=True,
        normalize_embedding_logits=kind.startswith("gemma"),
        hardware="cpu",
        skip_jax_distributed_system=True,
        per_device_batch_size=1,
        max_target_length=16,
        enable_checkpointing=False,
        **more,
    )


def _model(config: Any) -> Any:
    mesh = jax.sharding.Mesh(maxtext_utils.create_device_mesh(config), config.mesh_axes)
    return models.transformer_as_linen(config, mesh, quant=None, model_mode="train"), mesh


def tree(config: Any) -> dict[str, Any]:
    """The parameters that the model expects, by their dotted key paths."""
    abstract = maxtext_utils.get_abstract_param(_model(config)[0], config)
    return {name: getattr(leaf, "value", leaf) for name, leaf in flat(linen.unbox(abstract)).items()}


def tables(config: Config, scan: bool, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The checkpoint as MaxText's tables say, where they agree with its model on the shape (see docs/layouts.md)."""
    theirs = settings(config, scan)
    described = dict(config)
    if "num_local_experts" in config:
        described["num_experts"] = config["num_local_experts"]
    if config["model_type"] == "gemma3_text":
        described |= {"text_config": dict(config), "vision_config": {"num_hidden_layers": 0}}
    name = RELEASED[config["model_type"]]
    mapping = PARAM_MAPPING[name](described, theirs, scan)
    hooks = HOOK_FNS[name](described, theirs, scan, saving_to_hf=False)
    made = {}
    for path, leaf in tree(theirs).items():
        key = path.replace(".", "-")
        built = to_maxtext._get_hf_loading_function(
            mapping[key],
            lambda n: tensors[n.replace("model.language_model.", "model.")],
            hooks.get(key),
            leaf.shape,
            theirs,
            key,
        )
        if (array := np.asarray(built())).shape == leaf.shape:
            made[path] = array
    return made


def adapter(config: Config, scan: bool, factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An adapter of PEFT as MaxText's own conversion makes it, by its dotted key paths."""
    theirs, name = settings(config, scan), RELEASED[config["model_type"]]
    to_maxtext.HF_MODEL_CONFIGS[name] = SimpleNamespace(to_dict=lambda: dict(config))  # of the tiny model's sizes
    return flat(to_maxtext.convert_lora_to_maxtext_adapter(theirs, dict(factors), "float32"))


def logits(config: Config, scan: bool, checkpoint: str, tokens: np.ndarray) -> np.ndarray:
    """What the model says to the tokens with the checkpoint's parameters, every one of which it must expect."""
    theirs = settings(config, scan)
    model, mesh = _model(theirs)
    abstract = linen.unbox(maxtext_utils.get_abstract_param(model, theirs))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)
    params = load_params_from_path(checkpoint, wanted, 8)
    if wrong := mismatches(flat(params), flat(abstract)):
        raise SystemExit("\n".join(wrong))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        said = model.apply(
            params,
            jnp.asarray(tokens),
            positions,
            decoder_segment_ids=jnp.ones_like(positions),
            enable_dropout=False,
            rngs={"params": jax.random.key(0)},
        )
    return np.asarray(said[0] if isinstance(said, tuple) else said)


def main(verb: str, config: str, scan: str, *rest: str) -> None:
    """What the command line asks."""
    described, scanned = json.loads(Path(config).read_text()), scan == "scan"
    if verb == "tree":
        shapes = {name: list(leaf.shape) for name, leaf in tree(settings(described, scanned)).items()}
        Path(rest[0]).write_text(json.dumps(shapes))
    elif verb == "tables":
        np.savez(rest[1], **tables(described, scanned, load_file(rest[0])))  # pyright: ignore[reportArgumentType]
    elif verb == "adapter":
        np.savez(rest[1], **adapter(described, scanned, load_file(rest[0])))  # pyright: ignore[reportArgumentType]
    else:
        np.save(rest[2], logits(described, scanned, rest[0], np.load(rest[1])))


if __name__ == "__main__":
    main(*sys.argv[1:])
