"""What DeepMind's `gemma` makes of a configuration and a checkpoint. Runs where that package is installed.

`python -m tests.behaviour.gemma_model tree CONFIG GATES OUT` writes the key paths and shapes that the model expects;
`... logits CONFIG GATES CHECKPOINT TOKENS OUT` restores an orbax checkpoint and writes what the model says.
GATES is `transposed` for models that hold their gates as [out, in] (Gemma 3, Gemma 2 9B and 27B), else `plain`.
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
from gemma.gm.ckpts import load_params
from gemma.gm.nn import _config, _modules, _transformer

from tests.behaviour.restored import flat, mismatches

Config = Mapping[str, Any]

_KINDS = {
    "sliding_attention": _modules.AttentionType.LOCAL_SLIDING,
    "full_attention": _modules.AttentionType.GLOBAL,
}


def built(config: Config, gates: str) -> _transformer.Transformer:
    """The model of a Hugging Face configuration."""
    more: dict[str, Any] = {
        "final_logit_softcap": config["final_logit_softcapping"],
        "attn_logits_soft_cap": config["attn_logit_softcapping"],
    }
    if config["model_type"] == "gemma3_text":
        rope = config["rope_parameters"]
        more["use_qk_norm"] = True
        more["local_base_frequency"] = int(rope["sliding_attention"]["rope_theta"])
        more["global_base_frequency"] = int(rope["full_attention"]["rope_theta"])
    described = _config.TransformerConfig(
        num_embed=config["vocab_size"],
        embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        attention_types=tuple(_KINDS[kind] for kind in config["layer_types"]),
        sliding_window_size=config["sliding_window"],
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        transpose_gating_einsum=gates == "transposed",
        **more,
    )
    return _transformer.Transformer(config=described, dtype=jnp.float32)


def tree(model: _transformer.Transformer) -> dict[str, Any]:
    """The parameters of a model by their dotted key paths."""
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 4), jnp.int32)))
    return flat(made["params"])


def logits(config: Config, gates: str, checkpoint: str, tokens: np.ndarray) -> np.ndarray:
    """What the model says to the tokens with the checkpoint's parameters, every one of which it must expect."""
    model = built(config, gates)
    params = load_params(Path(checkpoint).resolve())
    if wrong := mismatches(flat(params), tree(model)):
        raise SystemExit("\n".join(wrong))
    with jax.default_matmul_precision("highest"):
        return np.asarray(model.apply({"params": params}, jnp.asarray(tokens)).logits)


def main(verb: str, config: str, gates: str, *rest: str) -> None:
    """What the command line asks."""
    described = json.loads(Path(config).read_text())
    if verb == "tree":
        shapes = {name: list(leaf.shape) for name, leaf in tree(built(described, gates)).items()}
        Path(rest[0]).write_text(json.dumps(shapes))
    else:
        checkpoint, tokens, out = rest
        np.save(out, logits(described, gates, checkpoint, np.load(tokens)))


if __name__ == "__main__":
    main(*sys.argv[1:])
