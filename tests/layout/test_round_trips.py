"""Every layout on tiny models of the real architectures: to the target and back, and what the target then holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.layout.bind import bind
from brainsurgery_jax.layout.config import read_config
from brainsurgery_jax.layout.library import layout_names, load_layout
from tests.behaviour import tiny
from tests.checkpoints import bits, read

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Row(NamedTuple):
    """A layout, a tiny model for it, and options. `exact`: whether every bit comes back."""

    layout: str
    model: str
    options: Mapping[str, Any] = {}
    exact: bool = True

    def __str__(self) -> str:
        return "-".join([self.layout, self.model, *(f"{k}={v}" for k, v in self.options.items())])


SCANNED, UNSCANNED = {"scan": True}, {"scan": False}
PAIRS = {"pairs": True}

ROWS = (
    Row("flax", "llama"),
    Row("flax", "t5"),
    Row("flax-gpt2", "gpt2"),
    Row("tunix-llama", "llama"),
    Row("tunix-llama", "llama-tied"),
    Row("tunix-llama", "mistral"),
    Row("tunix-llama", "qwen2"),
    Row("tunix-llama", "qwen2-untied"),
    Row("tunix-llama", "qwen3"),
    Row("tunix-llama", "qwen3-untied"),
    # Scaling the query by sqrt(head_dim) rounds.
    Row("maxtext-llama", "llama", SCANNED | PAIRS, exact=False),
    Row("maxtext-llama", "llama", UNSCANNED | PAIRS, exact=False),
    Row("maxtext-llama", "mistral", SCANNED, exact=False),
    Row("maxtext-qwen3", "qwen3", SCANNED),
    Row("maxtext-qwen3", "qwen3", UNSCANNED),
    Row("maxtext-llama", "llama", {"scan": True, "pairs": False}, exact=False),
    Row("maxtext-qwen3", "qwen3-untied", SCANNED),
    Row("maxtext-qwen3", "qwen2", SCANNED),
    Row("maxtext-qwen3", "qwen2-untied", UNSCANNED),
    Row("maxtext-qwen3moe", "qwen3_moe", SCANNED),
    Row("maxtext-qwen3moe", "qwen3_moe", UNSCANNED),
    Row("maxtext-olmo3", "olmo3", SCANNED),
    Row("maxtext-olmo3", "olmo3", UNSCANNED),
    Row("maxtext-mixtral", "mixtral", SCANNED, exact=False),
    Row("maxtext-mixtral", "mixtral", UNSCANNED, exact=False),
    # Norms gain one and lose it again, the embedding is multiplied by sqrt(hidden_size).
    Row("maxtext-gemma2", "gemma2", SCANNED, exact=False),
    Row("maxtext-gemma2", "gemma2", UNSCANNED, exact=False),
    Row("maxtext-gemma3", "gemma3", SCANNED, exact=False),
    Row("maxtext-gemma3", "gemma3", UNSCANNED, exact=False),
    Row("tunix-gemma2", "gemma2"),
    Row("tunix-gemma3", "gemma3"),
    Row("gemma-gemma2", "gemma2"),
    Row("tunix-gemma3", "gemma3-mha"),
    Row("gemma-gemma2", "gemma2-wide"),
    Row("gemma-gemma3", "gemma3"),
    Row("flax-olmo2", "olmo2"),
    Row("flax-olmo2", "olmo3"),
    Row("flax-olmoe", "olmoe"),
    Row("flax-mixtral", "mixtral"),
    Row("flax-bert", "bert"),
    Row("flax-t5", "t5"),
    Row("flax-t5", "t5-tied"),
    Row("flax-vit", "vit"),
    Row("bigvision-vit", "vit", SCANNED),
    Row("bigvision-vit", "vit", UNSCANNED),
    Row("vitjax-vit", "vit"),
    Row("flax-dinov2", "dinov2"),
    Row("flax-dinov2", "dinov2-swiglu"),
    Row("flax-dinov2", "dinov2_with_registers", {"base": "dinov2_with_registers."}),
    Row("flax-clip", "clip"),
    Row("bigvision-siglip", "siglip", SCANNED),
    Row("bigvision-siglip", "siglip", UNSCANNED),
    Row("flax-whisper", "whisper"),
    Row("easylm-llama", "llama"),
    Row("easylm-llama", "llama-tied"),
    Row("levanter-llama", "llama"),
    Row("levanter-llama", "llama-tied"),
    Row("levanter-llama", "mistral"),
    Row("bigvision-paligemma", "paligemma", {"base": "vision_tower."}),
    Row("openpi-paligemma", "paligemma", {"base": "vision_tower."}),
    Row("maxtext-deepseek", "deepseek_v3", SCANNED),
    Row("maxtext-deepseek", "deepseek_v3", UNSCANNED),
    Row("maxtext-deepseek", "deepseek_v2", SCANNED),
    Row("maxtext-gptoss", "gpt_oss", SCANNED),
    Row("maxtext-gptoss", "gpt_oss", UNSCANNED),
)

Saved = Callable[[str, str], Path]

EACH = pytest.mark.parametrize("row", ROWS, ids=str)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A folder with a tiny model of a name and dtype, made once."""
    return cache(lambda model, dtype: tiny.save(model, tmp_path_factory.mktemp("tiny"), DTYPES[dtype]))


def carried(row: Row, source: Path, out: Path, config: Path, *, inverse: bool) -> dict[str, np.ndarray]:
    """What a plan with one layout step writes."""
    step = {"name": row.layout, "config": str(config), "options": _options(row, config), "inverse": inverse}
    bs.load({"inputs": [str(source)], "transforms": [{"layout": step}], "output": str(out)}).run(durable=False)
    return read(out)


def _options(row: Row, config: Path) -> dict[str, object]:
    """The options of a row. Older releases of transformers nest the tower of PaliGemma deeper, as files of the hub."""
    names = read(config.with_name("model.safetensors"))
    nested = any(name.startswith("vision_tower.vision_model.") for name in names)
    return {**row.options, **({"base": "vision_tower.vision_model."} if nested else {})}


@pytest.mark.parametrize("dtype", DTYPES)
@EACH
def test_a_model_comes_back_from_its_target(row: Row, dtype: str, tmp_path: Path, saved: Saved) -> None:
    folder = saved(row.model, dtype)
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    carried(row, folder, there, folder / "config.json", inverse=False)
    restored = carried(row, there, back, folder / "config.json", inverse=True)
    original = read(folder / "model.safetensors")
    assert restored.keys() == original.keys()
    for name, x in original.items():
        assert (restored[name].shape, restored[name].dtype) == (x.shape, x.dtype), name
        if row.exact:
            assert bits(restored[name]) == bits(x), name
        else:
            wide = [np.asarray(y, np.float32) for y in (restored[name], x)]
            rtol, atol = (1e-2, 2**-8) if dtype == "bfloat16" else (1e-6, 2e-7)
            np.testing.assert_allclose(*wide, rtol=rtol, atol=atol, err_msg=name)


@EACH
def test_only_the_rules_that_say_so_lose_bits(row: Row, saved: Saved) -> None:
    folder = saved(row.model, "float32")
    bound = bind(load_layout(row.layout), read_config(str(folder / "config.json")), row.options)
    assert (not bound.lossy()) is row.exact


def test_every_layout_has_a_row() -> None:
    assert {row.layout for row in ROWS} == set(layout_names())
