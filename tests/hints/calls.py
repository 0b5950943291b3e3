"""What tests of hints call, and a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests import checkpoints

W = np.arange(4, dtype=np.float32)
WTE = np.full((5, 2), 1 / 3, np.float32)
"""The embedding of the tiny model."""
DOUBLE = {"scale_": {"target": "w", "by": 2}}
GPT2 = {
    "model_type": "gpt2", "n_layer": 1, "n_embd": 2, "n_head": 1, "n_positions": 3, "vocab_size": 5,
    "tie_word_embeddings": True,
}  # fmt: skip


def hint_of(call: Callable[[], object], says: str) -> str:
    """The hint that a call is refused with; it holds certain words."""
    with pytest.raises((bs.PlanError, bs.StoreError)) as refused:
        call()
    bad = refused.value
    hint = bad.remedy if isinstance(bad, bs.StoreError) else bad.diagnostics[0].hint
    assert says in hint, hint
    return hint


def run(*transforms: Any, output: Any = "out.safetensors", inputs: Any = "m::m.safetensors", **given: Any) -> Any:
    """Run a plan, and read what it wrote."""
    plan = {"inputs": [inputs], "transforms": list(transforms), "output": output}
    bs.load(plan).run(durable=False, **given)
    path = output if isinstance(output, str) else output["path"]
    return {name: array.tolist() for name, array in bs.open(path).items()}


def gpt2(folder: str = "hf", config: Any = GPT2) -> str:
    """A tiny GPT-2, zeros but for the embedding."""
    shapes = {
        "wte.weight": (5, 2), "wpe.weight": (3, 2), "ln_f.weight": (2,), "ln_f.bias": (2,),
        "h.0.ln_1.weight": (2,), "h.0.ln_1.bias": (2,), "h.0.ln_2.weight": (2,), "h.0.ln_2.bias": (2,),
        "h.0.attn.c_attn.weight": (2, 6), "h.0.attn.c_attn.bias": (6,), "h.0.attn.c_proj.weight": (2, 2),
        "h.0.attn.c_proj.bias": (2,), "h.0.mlp.c_fc.weight": (2, 8), "h.0.mlp.c_fc.bias": (8,),
        "h.0.mlp.c_proj.weight": (8, 2), "h.0.mlp.c_proj.bias": (2,),
    }  # fmt: skip
    Path(folder).mkdir()
    tensors = {name: np.full(shape, at / 3, np.float32) for at, (name, shape) in enumerate(shapes.items(), 1)}
    checkpoints.write(Path(folder, "model.safetensors"), tensors)
    if config is not None:
        Path(folder, "config.json").write_text(json.dumps(config))
    return folder
