"""Checkpoints for benchmarks: names and shapes of real models, reproducible values, written by the stock library.

With BENCH_SMALL every model has about 20 MB, to try the benchmarks themselves: its figures mean nothing.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]
Tensors = Iterable[tuple[str, np.ndarray]]

SMALL = bool(os.environ.get("BENCH_SMALL"))
DATA = Path(os.environ.get("BENCH_DATA", Path(tempfile.gettempdir()) / "brainsurgery-bench")) / ("small" * SMALL)
SHARD = 1 << (23 if SMALL else 30)


def gpt2(layers: int = 12, width: int = 768, vocab: int = 50257) -> Shapes:
    """Names and shapes of GPT-2 (124M at the defaults)."""
    shapes: Shapes = {"wte.weight": (vocab, width), "wpe.weight": (1024, width)}
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


def checkpoint(model: str, *, tuned: bool = False, at: int = 1) -> Path:
    """The checkpoint of a model (`gpt2`: 0.5 GB, float32; `llama`: 2.5 GB, bfloat16), made once. `at`: the number of
    one that was trained; each differs from the base by as many times the change of the first."""
    if SMALL:
        shapes = {"gpt2": gpt2(4, 288, 4096), "llama": llama(2, 512, 2048, 128, 4096)}[model]
    else:
        shapes = {"gpt2": gpt2, "llama": llama}[model]()
    dtype = {"gpt2": "float32", "llama": "bfloat16"}[model]
    name = model + "-tuned" * tuned + f"-{at}" * (at > 1)
    return write(DATA / name, values(shapes, dtype, tuned=0.05 * at if tuned else 0.0))


def layered(nbytes: int) -> Path:
    """A checkpoint of about as many bytes, bfloat16: a small Llama with as many equal layers as that takes.

    However large, its largest tensor is the same, so what memory should not follow it does not.
    """
    width = 128 if SMALL else 1024
    one, two = (sum(map(prod, _sweep_model(n, width).values())) for n in (1, 2))
    layers = max(1, round((nbytes / 2 - (2 * one - two)) / (two - one)))
    return write(DATA / f"layers-{layers}", _rolled(_sweep_model(layers, width), "bfloat16"))


def _sweep_model(layers: int, width: int) -> Shapes:
    return llama(layers, width, 4 * width, width // 4, 8 * width)


def values(shapes: Shapes, dtype: str, seed: int = 0, tuned: float = 0.0) -> Iterator[tuple[str, np.ndarray]]:
    """Reproducible values, tensor by tensor. Matrices have a spectrum that falls like k**-0.7, roughly as trained ones.

    `tuned` adds a second such matrix of that relative size: a fine-tuned variant of the same checkpoint.
    """
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for at, (name, shape) in enumerate(shapes.items()):
        value = value_like(shape, np.random.default_rng((seed, at)))
        if tuned:
            value += np.float32(tuned) * value_like(shape, np.random.default_rng((seed, at, 1)))
        yield name, value.astype(numpy_dtype)


def value_like(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
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


def _rolled(shapes: Shapes, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """As `values`, at the speed of a copy: layer `i` has the values of the first, their rows moved on by `i`.

    That leaves the singular values as they are, and no two layers with the same bytes. One layer is held.
    """
    first: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        layer = re.search(r"\.(\d+)\.", name)
        kind = name.replace(layer[0], ".*.") if layer else name
        if kind not in first:
            first[kind] = next(values({name: shape}, dtype, seed=len(first)))[1]
        yield name, np.roll(first[kind], int(layer[1]), axis=0) if layer else first[kind]


def write(folder: Path, tensors: Tensors) -> Path:
    """A folder with the tensors, in shards without an index if they need several; made once, then reused.

    One shard at a time is held in memory.
    """
    done = folder.with_suffix(".done")
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, np.ndarray] = {}
    number, size = 1, 0
    for name, array in tensors:
        if shard and size + array.nbytes > SHARD:
            save_file(shard, folder / f"model-{number:05d}.safetensors", {"format": "pt"})
            shard, size, number = {}, 0, number + 1
        shard[name] = array
        size += array.nbytes
    save_file(shard, folder / f"model-{number:05d}.safetensors", {"format": "pt"})
    done.touch()
    return folder


def hollow(path: Path, tensors: int, shape: tuple[int, int] = (64, 64)) -> Path:
    """A checkpoint of equal bfloat16 matrices, ten to a layer, in one file: a header and a hole, no values on disk."""
    size = 2 * prod(shape)
    header = {
        f"model.layers.{i // 10}.block.{i % 10}.weight": {
            "dtype": "BF16", "shape": shape, "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(tensors)
    }  # fmt: skip
    _hollow_file(path, header)
    return path


def mixture() -> Path:
    """The headers of DeepSeek-V3 (671B, float8 with scales): about 90,000 tensors in 163 shards with an index, no
    values on disk. Layer 61 is its multi-token prediction."""
    return _hollow_folder("mixture", _deepseek(4 if SMALL else 256), 688 * 10**9 // 162)


def dense() -> Path:
    """The headers of a Llama 3.1 405B in bfloat16, in shards of about 5 GB, no values on disk."""
    shapes = llama(2 if SMALL else 126, 16384, 53248, 1024) | {"lm_head.weight": (128256, 16384)}
    return _hollow_folder("dense", {name: ("BF16", shape) for name, shape in shapes.items()}, 5 * 10**9)


def _hollow_folder(kind: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], largest: int) -> Path:
    """A folder of headers and holes, with an index."""
    folder = DATA / kind
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = prod(shape) * _WIDTHS[dtype]
        if size + nbytes > largest:
            shards.append({})
            size = 0
        shards[-1][name] = {"dtype": dtype, "shape": shape, "data_offsets": [size, size + nbytes]}
        size += nbytes
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{at:05d}-of-{len(shards):06d}.safetensors" for at in range(1, len(shards) + 1)]
    for name, header in zip(names, shards, strict=True):
        _hollow_file(folder / name, header)
    where = {tensor: name for name, header in zip(names, shards, strict=True) for tensor in header}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


_WIDTHS = {"F8_E4M3": 1, "BF16": 2, "F32": 4}


def _deepseek(experts: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes of a DeepSeek-V3."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"model.norm.weight": ("BF16", (7168,))}
    tensors |= {f"{name}.weight": ("BF16", (129280, 7168)) for name in ("model.embed_tokens", "lm_head")}
    for i in range(62):
        p = f"model.layers.{i}"
        norms = {"input_layernorm": 7168, "post_attention_layernorm": 7168}
        norms |= {"self_attn.q_a_layernorm": 1536, "self_attn.kv_a_layernorm": 512}
        tensors |= {f"{p}.{norm}.weight": ("BF16", (width,)) for norm, width in norms.items()}
        matrices = {
            "self_attn.q_a_proj": (1536, 7168), "self_attn.q_b_proj": (24576, 1536),
            "self_attn.kv_a_proj_with_mqa": (576, 7168), "self_attn.kv_b_proj": (32768, 512),
            "self_attn.o_proj": (7168, 16384),
        }  # fmt: skip
        if i < 3:
            matrices |= _gated("mlp", 18432)
        else:
            tensors[f"{p}.mlp.gate.weight"] = ("BF16", (experts, 7168))
            tensors[f"{p}.mlp.gate.e_score_correction_bias"] = ("F32", (experts,))
            for block in ("shared_experts", *(f"experts.{expert}" for expert in range(experts))):
                matrices |= _gated(f"mlp.{block}", 2048)
        for name, shape in matrices.items():
            tensors[f"{p}.{name}.weight"] = ("F8_E4M3", shape)
            tensors[f"{p}.{name}.weight_scale_inv"] = ("F32", tuple(-(-size // 128) for size in shape))
    return tensors


def _gated(block: str, width: int) -> Shapes:
    ways = {"gate": (width, 7168), "up": (width, 7168), "down": (7168, width)}
    return {f"{block}.{way}_proj": shape for way, shape in ways.items()}


def _hollow_file(path: Path, header: Mapping[str, Any]) -> None:
    """A safetensors file of a header and a hole."""
    encoded = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + max(entry["data_offsets"][1] for entry in header.values()))


def files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that hold tensors."""
    return sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else [checkpoint]


def count(checkpoint: Path) -> int:
    """How many tensors a checkpoint has."""
    total = 0
    for path in files(checkpoint):
        with safe_open(path, "np") as file:
            total += len(file.keys())
    return total


def nbytes(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def shown(nbytes: int) -> str:
    """Bytes as people say them: `2.5 GB`."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.0f} MB"
