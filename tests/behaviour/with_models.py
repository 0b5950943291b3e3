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
from tests.checkpoints import normal, read, write

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
        pairs = {"pairs": True} if self.layout == "maxtext-llama" and self.model != "mistral" else {}
        return ({"scan": self.more == "scan"} if self.library == "maxtext" else {}) | pairs


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


def factors_of(model: str, modules: tuple[str, ...]) -> dict[str, np.ndarray]:
    """An adapter of rank 3 on modules of every layer, as PEFT names it."""
    found = {}
    for at, (name, x) in enumerate(tiny.tensors(model).items()):
        if name.removesuffix(".weight").endswith(modules):
            out, in_ = x.shape
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            found[f"{stem}.lora_A.weight"] = normal((3, in_), seed=at) / in_**0.5
            found[f"{stem}.lora_B.weight"] = normal((out, 3), seed=100 + at) / 2
    return {name: x.astype(np.float32) for name, x in found.items()}


def merged_with(model: str, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a tiny model with an adapter added."""
    weights = dict(tiny.tensors(model))
    for name in (n for n in factors if ".lora_A." in n):
        weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
        weights[weight] = weights[weight] + factors[name.replace("lora_A", "lora_B")] @ factors[name]
    return weights


@pytest.mark.parametrize("model", ADAPTED)
def test_tunix_with_a_converted_adapter_says_what_the_merged_original_says(model: str, tmp_path: Path) -> None:
    layout, modules = ADAPTED[model]
    source, factors = tiny.save(model, tmp_path / "hf"), factors_of(model, modules)
    adapter = write(tmp_path / "adapter.safetensors", factors)
    asked = {"layout": layout, "config": str(source), "durable": False}
    bs.convert(str(source), str(tmp_path / "base"), **asked)
    bs.convert(str(adapter), str(tmp_path / "factors"), **asked)
    tokens, said = tmp_path / "tokens.npy", tmp_path / "said.npy"
    np.save(tokens, tiny.TOKENS)
    places = (source / "config.json", tmp_path / "base", tmp_path / "factors", tokens, said)
    ask("tunix", "adapted", *map(str, places))
    wanted = tiny.logits(model, merged_with(model, factors))
    assert float(np.abs(wanted - tiny.logits(model)).max()) > 0.1, "the adapter is heard"
    found = float(np.abs(np.load(said) - wanted).max())
    print(f"adapter of {model}: largest difference {found:.1e}")
    assert found <= 1e-4


@pytest.mark.parametrize("scan", ["scan", "unscanned"])
def test_a_converted_adapter_is_what_maxtext_makes_of_it(scan: str, tmp_path: Path) -> None:
    source, factors = tiny.save("llama", tmp_path / "hf"), factors_of("llama", ADAPTED["llama"][1])
    adapter, theirs = write(tmp_path / "adapter.safetensors", factors), tmp_path / "theirs.npz"
    made = tmp_path / "made.safetensors"
    options = {"scan": scan == "scan", "pairs": True}
    bs.convert(str(adapter), str(made), layout="maxtext", config=str(source), options=options, durable=False)
    ask("maxtext", "adapter", str(source / "config.json"), scan, str(adapter), str(theirs))
    with np.load(theirs) as wanted:
        found = read(made)
        assert set(found) == set(wanted.files)
        for name, x in found.items():
            np.testing.assert_allclose(x, wanted[name], rtol=2e-7, err_msg=name)
