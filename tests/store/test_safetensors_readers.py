"""What readers of safetensors folders rely on, against the bytes that are written: transformers, diffusers, mlx."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import transformers

import brainsurgery_jax as bs
from tests.checkpoints import bits, counting, normal, write

TENSORS = {
    "odd": counting((3,), np.int8),
    "half": normal((5, 3)).astype(np.float16),
    "brain": normal((5, 3)).astype(ml_dtypes.bfloat16),
    "double": normal((7,)).astype(np.float64),
    "single": normal((2, 2)),
    "flag": np.array([True, False, True]),
}


def header(path: Path) -> tuple[dict, int]:
    """The header of a file, and where its data begin."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), 8 + size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of several shards."""
    source = write(tmp_path / "m.safetensors", TENSORS)
    steps = [{"scale_": {"target": "single", "by": 2}}]
    output = {"path": f"{tmp_path}/out/", "shard": "64B"}
    before = os.umask(0o022)
    try:
        bs.load({"inputs": [str(source)], "transforms": steps, "output": output}).run(durable=False)
    finally:
        os.umask(before)
    return tmp_path / "out"


def test_each_file_says_that_it_is_of_pytorch_and_may_be_read_by_all(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    for path in files:
        assert header(path)[0]["__metadata__"] == {"format": "pt"}
        assert path.stat().st_mode & 0o777 == 0o644


def test_data_are_aligned_to_their_elements_for_readers_that_map_them(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        table, start = header(path)
        assert start % 64 == 0
        for name, entry in table.items():
            if name != "__metadata__":
                assert (start + entry["data_offsets"][0]) % TENSORS[name].itemsize == 0


def test_the_index_names_every_tensor_its_file_and_the_size_of_all(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in TENSORS.values())
    assert list(index["weight_map"]) == list(TENSORS)
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    # diffusers and mlx read shard after shard, and expect that the shards hold what the index says.
    held = {name: path.name for path in folder.glob("*.safetensors") for name in header(path)[0] if name[0] != "_"}
    assert held == index["weight_map"]


def test_the_stock_readers_agree_on_the_values(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        for name, found in safetensors.torch.load_file(path).items():
            expected = TENSORS[name] * np.asarray(2 if name == "single" else 1, TENSORS[name].dtype)
            assert bits(found.reshape(-1).view(torch.uint8).numpy()) == bits(expected)
        with safetensors.safe_open(str(path), "np") as file:
            assert file.metadata() == {"format": "pt"}


def test_transformers_loads_a_folder_that_was_written(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(str(tmp_path / "in"))
    step = {"scale_": {"target": r".*ln_f\.weight", "by": 0.5}}
    plan = {
        "inputs": [str(tmp_path / "in")],
        "transforms": [step],
        "output": {"path": f"{tmp_path}/out/", "shard": "1KB"},
    }
    bs.load(plan).run(durable=False)
    found = transformers.GPT2LMHeadModel.from_pretrained(str(tmp_path / "out"))
    expected = model.state_dict() | {"transformer.ln_f.weight": 0.5 * model.state_dict()["transformer.ln_f.weight"]}
    assert all(found.state_dict()[name].equal(value) for name, value in expected.items())
