"""What the libraries' own models say with converted checkpoints, beside what `transformers` says with the originals.

`make behaviour` runs these: each library wants an environment of its own, and a missing one is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.behaviour import tiny
from tests.behaviour.homes import ask
from tests.checkpoints import normal, write

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

# MaxText multiplies by a tied embedding in bfloat16 whatever dtype it is told.
BFLOAT16 = 2e-2


class Row(NamedTuple):
    """A layout, a tiny model for it, the library that runs it, and what its script must be told more."""

    layout: str
    model: str
    library: str
    more: str = ""
    within: float = 1e-4

    def __str__(self) -> str:
        return "-".join(filter(None, (self.layout, self.model, self.more)))

    @property
    def options(self) -> dict[str, Any]:
        """The options of the layout."""
        return {"scan": self.more == "scan"} if self.library == "maxtext" else {}


ROWS = (
    *(
        Row("tunix-llama", model, "tunix")
        for model in ("llama", "llama-tied", "mistral", "qwen2", "qwen2-untied", "qwen3", "qwen3-untied")
    ),
    Row("tunix-gemma2", "gemma2", "tunix"),
    Row("tunix-gemma3", "gemma3", "tunix"),
    Row("tunix-gemma3", "gemma3-mha", "tunix"),
    Row("gemma-gemma2", "gemma2", "gemma", "transposed"),
    Row("gemma-gemma2", "gemma2-wide", "gemma", "plain"),
    Row("gemma-gemma3", "gemma3", "gemma", "transposed"),
    Row("gemma-gemma3", "gemma3-mha", "gemma", "transposed"),
    *(
        Row(layout, model, "maxtext", scan, within)
        for layout, model, within in (
            ("maxtext-llama", "llama", 1e-4),
            ("maxtext-llama", "llama-tied", BFLOAT16),
            ("maxtext-llama", "mistral", 1e-4),
            ("maxtext-qwen3", "qwen2", BFLOAT16),
            ("maxtext-qwen3", "qwen2-untied", 1e-4),
            ("maxtext-qwen3", "qwen3", BFLOAT16),
            ("maxtext-qwen3", "qwen3-untied", 1e-4),
            ("maxtext-gemma2", "gemma2", BFLOAT16),
            ("maxtext-gemma3", "gemma3", BFLOAT16),
            ("maxtext-mixtral", "mixtral", 1e-4),
            ("maxtext-qwen3moe", "qwen3_moe", 1e-4),
            ("maxtext-olmo3", "olmo3", 1e-4),
        )
        for scan in ("scan", "unscanned")
    ),
)


def difference(row: Row, folder: Path) -> float:
    """The largest difference between what the two models say."""
    source = tiny.save(row.model, folder / "hf")
    checkpoint, tokens, said = folder / "orbax", folder / "tokens.npy", folder / "said.npy"
    bs.convert(str(source), str(checkpoint), layout=row.layout, options=row.options, durable=False)
    np.save(tokens, tiny.TOKENS)
    words = ["logits", str(source / "config.json"), row.more, str(checkpoint), str(tokens), str(said)]
    ask(row.library, *filter(None, words))
    return float(np.abs(np.load(said) - tiny.logits(row.model)).max())


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_converted_model_says_what_the_original_says(row: Row, tmp_path: Path) -> None:
    found = difference(row, tmp_path)
    print(f"{row}: largest difference {found:.1e}")
    assert found <= row.within


# The modules of a layer that are adapted; Gemma 3 holds keys and values as one tensor, which has no factors in common.
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ADAPTED = {
    "llama": ("tunix-llama", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", *MLP)),
    "gemma3": ("tunix-gemma3", ("self_attn.q_proj", "self_attn.o_proj", *MLP)),
}


@pytest.mark.parametrize("model", ADAPTED)
def test_tunix_with_a_converted_adapter_says_what_the_merged_original_says(model: str, tmp_path: Path) -> None:
    layout, modules = ADAPTED[model]
    source, merged = tiny.save(model, tmp_path / "hf"), dict(tiny.tensors(model))
    factors = {}
    for at, (name, x) in enumerate(merged.items()):
        if name.removesuffix(".weight").endswith(modules):
            out, in_ = x.shape
            down, up = normal((3, in_), seed=at) / in_**0.5, normal((out, 3), seed=100 + at) / 2
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            merged[name] = x + up @ down
    adapter = write(tmp_path / "adapter.safetensors", factors)
    asked = {"layout": layout, "config": str(source), "durable": False}
    bs.convert(str(source), str(tmp_path / "base"), **asked)
    bs.convert(str(adapter), str(tmp_path / "factors"), **asked)
    tokens, said = tmp_path / "tokens.npy", tmp_path / "said.npy"
    np.save(tokens, tiny.TOKENS)
    places = (source / "config.json", tmp_path / "base", tmp_path / "factors", tokens, said)
    ask("tunix", "adapted", *map(str, places))
    found = float(np.abs(np.load(said) - tiny.logits(model, merged)).max())
    assert float(np.abs(tiny.logits(model, merged) - tiny.logits(model)).max()) > 0.1, "the adapter is heard"
    print(f"adapter of {model}: largest difference {found:.1e}")
    assert found <= 1e-4
