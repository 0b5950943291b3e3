"""LoRA adapters go the way of their base: the product of the converted factors is the converted product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.layout.adapters import DOWN, HEAD, UP, is_adapter
from tests.checkpoints import bits, normal, read, write
from tests.layout.test_convert import GPT2, LLAMA, gpt2, llama

RANK = 3
MODULES = {
    "llama": [
        f"model.layers.1.{m}" for m in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
    ],
    "gpt2": ["h.0.attn.c_attn", "h.1.mlp.c_proj"],
}
BASES = {"llama": (llama, LLAMA), "gpt2": (gpt2, GPT2)}


def factors(model: str) -> dict[str, np.ndarray]:
    """An adapter of a few modules, as PEFT names it: factors of a Linear, also where the weight is that of a Conv1D."""
    weights, found = BASES[model][0](), {}
    for at, module in enumerate(MODULES[model]):
        shape = weights[f"{module}.weight"].shape
        out, in_ = shape if model == "llama" else shape[::-1]
        found[HEAD + module + DOWN] = normal((RANK, in_), seed=at)
        found[HEAD + module + UP] = normal((out, RANK), seed=50 + at)
    return found


def with_products(model: str) -> dict[str, np.ndarray]:
    """The base with the weights of those modules replaced by what the adapter would add to them."""
    adapter, weights = factors(model), BASES[model][0]()
    for module in MODULES[model]:
        product = adapter[HEAD + module + UP] @ adapter[HEAD + module + DOWN]
        weights[f"{module}.weight"] = product if model == "llama" else product.T
    return weights


def converted(
    tensors: dict[str, np.ndarray], model: str, folder: Path, name: str, **wishes: Any
) -> dict[str, np.ndarray]:
    (folder / "config.json").write_text(json.dumps(BASES[model][1]))
    source = write(folder / f"{name}.safetensors", tensors)
    bs.convert(str(source), str(folder / f"{name}.out.safetensors"), durable=False, **wishes)
    return read(folder / f"{name}.out.safetensors")


@pytest.mark.parametrize(
    ("model", "wishes"),
    [
        ("llama", {"layout": "tunix"}),
        ("llama", {"layout": "maxtext", "scan": False}),
        ("gpt2", {"layout": "flax-gpt2"}),
    ],
    ids=["tunix", "maxtext", "flax"],
)
def test_the_product_of_the_factors_is_the_converted_product(model: str, wishes: Any, tmp_path: Path) -> None:
    whole = converted(with_products(model), model, tmp_path, "whole", **wishes)
    found = converted(factors(model), model, tmp_path, "adapter", **wishes)
    assert len(found) == 2 * len(MODULES[model])
    assert is_adapter(found)
    for name in (n.removesuffix("_lora_a") for n in found if n.endswith("_lora_a")):
        product = np.tensordot(found[f"{name}_lora_a"], found[f"{name}_lora_b"], 1)
        np.testing.assert_allclose(product, whole[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_adapter_comes_back(tmp_path: Path) -> None:
    there = converted(factors("llama"), "llama", tmp_path, "there", layout="tunix")
    back = converted(there, "llama", tmp_path, "back", layout="tunix")
    assert back.keys() == factors("llama").keys()
    assert all(bits(back[name]) == bits(x) for name, x in factors("llama").items())


def test_factors_of_stacked_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="'maxtext-llama' has no place for the factors of this adapter"):
        converted(factors("llama"), "llama", tmp_path, "stacked", layout="maxtext", scan=True)
