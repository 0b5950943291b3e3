from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.remote.servers import Served, serve

LAYERS = 8


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"model.layers.{i}.w": random.standard_normal((256, 1024), np.float32) for i in range(LAYERS)}


@pytest.fixture
def model(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A model of two shards of 4 MiB with its side files, as a hub has it at `org/model`."""
    folder = tmp_path / "served/org/model"
    folder.mkdir(parents=True)
    shard = {name: f"model-{1 + i // 4:05d}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(shard.values()):
        save_file({name: tensors[name] for name in tensors if shard[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": LAYERS}))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    return folder


@pytest.fixture
def server(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serve(tmp_path / "served") as served:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr("brainsurgery_jax.store.remote.file.FIRST_WAIT", 0.0)
        yield served
