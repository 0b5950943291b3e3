"""Checkpoints for benchmarks: names and shapes of real models, reproducible values, written by the stock library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]


def gpt2(layers: int = 12, width: int = 768) -> Shapes:
    """Names and shapes of GPT-2 (124M at the defaults)."""
    shapes: Shapes = {"wte.weight": (50257, width), "wpe.weight": (1024, width)}
    for i in range(layers):
        for name, shape in {
            "ln_1": (width,), "ln_2": (width,), "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width),
        }.items():  # fmt: skip
            shapes[f"h.{i}.{name}.weight"] = shape
            shapes[f"h.{i}.{name}.bias"] = shape[-1:]
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def llama(layers: int = 16, width: int = 2048, mlp: int = 8192, kv: int = 512, vocab: int = 128256) -> Shapes:
    """Names and shapes of a Llama 3.2 (1B at the defaults)."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(layers):
        p = f"model.layers.{i}"
        for name, out in {"q": width, "k": kv, "v": kv, "o": width}.items():
            shapes[f"{p}.self_attn.{name}_proj.weight"] = (out, width)
        shapes |= {f"{p}.mlp.gate_proj.weight": (mlp, width), f"{p}.mlp.up_proj.weight": (mlp, width)}
        shapes |= {f"{p}.mlp.down_proj.weight": (width, mlp)}
        shapes |= {f"{p}.{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (width,)}


def values(shapes: Shapes, dtype: str, seed: int = 0, tuned: float = 0.0) -> Iterator[tuple[str, np.ndarray]]:
    """Reproducible values, tensor by tensor. Matrices have a spectrum that falls like k**-0.7, roughly as trained ones.

    `tuned` adds a second such matrix of that relative size: a fine-tuned variant of the same checkpoint.
    """
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for at, (name, shape) in enumerate(shapes.items()):
        value = _value(shape, np.random.default_rng((seed, at)))
        if tuned:
            value += np.float32(tuned) * _value(shape, np.random.default_rng((seed, at, 1)))
        yield name, value.astype(numpy_dtype)


def _value(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal values; of a matrix, the columns are scaled by the spectrum and then rotated by random reflections."""
    value = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    if len(shape) < 2 or min(shape) < 8:
        return value
    value *= np.arange(1, shape[-1] + 1, dtype=np.float32) ** np.float32(-0.7)
    for _ in range(4):
        axis = rng.standard_normal(shape[-1], np.float32)
        axis /= np.linalg.norm(axis)
        value -= np.outer(value @ axis, 2 * axis)
    return value[:, rng.permutation(shape[-1])]


def write(folder: Path, shapes: Shapes, dtype: str, *, shard_bytes: int = 1 << 30, tuned: float = 0.0) -> Path:
    """A folder with the checkpoint, in shards without an index if it is larger than one; made once, then reused."""
    done = folder.with_suffix(".done")
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, np.ndarray] = {}
    number, size = 1, 0
    for name, array in values(shapes, dtype, tuned=tuned):
        if shard and size + array.nbytes > shard_bytes:
            save_file(shard, folder / f"model-{number:05d}.safetensors", {"format": "pt"})
            shard, size, number = {}, 0, number + 1
        shard[name] = array
        size += array.nbytes
    save_file(shard, folder / f"model-{number:05d}.safetensors", {"format": "pt"})
    done.touch()
    return folder
