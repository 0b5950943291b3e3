"""Reading and writing a folder of shards with torch, as such scripts do: the whole checkpoint in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def load(folder: str) -> Tensors:
    """All tensors of a folder."""
    tensors: Tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def save(tensors: Tensors, folder: str, limit: int = 1 << 30) -> None:
    """Write tensors in shards of at most `limit` bytes."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    shard: Tensors = {}
    size, number = 0, 1
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > limit:
            save_file(shard, Path(folder) / f"model-{number:05d}.safetensors", {"format": "pt"})
            shard, size, number = {}, 0, number + 1
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    save_file(shard, Path(folder) / f"model-{number:05d}.safetensors", {"format": "pt"})
