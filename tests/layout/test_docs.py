"""The layout in the documentation is one, and does what the text around it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.layout.library import load_layout
from brainsurgery_jax.layout.proof import proofs
from tests.checkpoints import normal, write

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
CONFIG = {"vocab_size": 5, "hidden_size": 4, "num_attention_heads": 2, "head_dim": 3, "num_hidden_layers": 2}


@pytest.fixture
def layout(tmp_path: Path) -> str:
    """The layout that the page shows, in a file."""
    (text,) = re.findall(r"```yaml\n(layout: .*?)```", PAGE.read_text(), flags=re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> dict[str, np.ndarray]:
    shapes = {"embed.weight": (5, 4), "head.weight": (5, 4)}
    shapes |= {f"layers.{i}.{name}.weight": (6, 4) for i in range(2) for name in "qkv"}
    tensors = {name: normal(shape, seed=at) for at, (name, shape) in enumerate(shapes.items())}
    write(tmp_path / "hf.safetensors", tensors)
    return tensors


def taken(folder: Path, source: str, made: str, step: dict[str, Any]) -> Any:
    bs.load({"inputs": [f"m::{folder / source}"], "transforms": [{"layout": step}], "output": str(folder / made)}).run()
    return bs.open(str(folder / made))


def test_its_proof_holds_with_and_without_a_scan(layout: str) -> None:
    assert [(proof.holds, proof.lossy) for proof in proofs(load_layout(layout))] == [(True, ())] * 2


def test_it_stacks_layers_heads_and_keys_with_values(tmp_path: Path, layout: str, model: dict[str, np.ndarray]) -> None:
    there = taken(tmp_path, "hf.safetensors", "there.safetensors", {"name": layout, "config": CONFIG})
    query = np.stack([model[f"layers.{i}.q.weight"].T.reshape(4, 2, 3) for i in range(2)])
    np.testing.assert_array_equal(there["params.layers.query.kernel"], query)
    assert there["params.layers.key_value"].shape == (2, 2, 4, 6)
    np.testing.assert_array_equal(there["params.layers.key_value"][1, 1], model["layers.1.v.weight"].T)


@pytest.mark.parametrize("scan", [True, False])
def test_the_way_back_gives_every_tensor(tmp_path: Path, layout: str, model: dict[str, np.ndarray], scan: bool) -> None:
    step = {"name": layout, "config": CONFIG, "options": {"scan": scan}}
    taken(tmp_path, "hf.safetensors", "there.safetensors", step)
    back = taken(tmp_path, "there.safetensors", "back.safetensors", step | {"inverse": True})
    assert set(back) == set(model)
    for name, x in model.items():
        np.testing.assert_array_equal(back[name], x)


def test_its_plan_for_a_table_of_positions_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```yaml\n(inputs: \[vit-224/\].*?)```", PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit-224").mkdir()
    (tmp_path / "vit-224" / "config.json").write_text('{"image_size": 224}')
    table = normal((1, 197, 768))
    write(tmp_path / "vit-224" / "model.safetensors", {"vit.embeddings.position_embeddings": table})
    (tmp_path / "plan.yaml").write_text(text)
    bs.load("plan.yaml").run()
    found = bs.open("vit-384")["vit.embeddings.position_embeddings"]
    grid = jax.image.resize(table[:, 1:].reshape(1, 14, 14, 768), (1, 24, 24, 768), "bicubic")
    np.testing.assert_array_equal(found, np.concatenate([table[:, :1], grid.reshape(1, 576, 768)], 1))
    assert '"image_size": 384' in (tmp_path / "vit-384" / "config.json").read_text()
