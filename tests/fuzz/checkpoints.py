"""Small checkpoints that are right, of every format, for the fuzzer to damage; and texts for it to start from."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BY_NAME, Aval
from tests import fuzz_texts
from tests.checkpoints import write
from tests.store.test_hostile_pickles import TRAPS

TREE: Mapping[str, Any] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": {"c": np.arange(4, dtype=np.int64), "d": [np.ones((2, 2), np.float16)]},
}
FLAT: Mapping[str, np.ndarray] = {"a": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.int8)}


def _saved(folder: Path, name: str, tree: Mapping[str, Any], **keys: Any) -> Path:
    bs.save(str(folder / name), tree, durable=False, **keys)
    return folder / name


def _files(folder: Path, *, below: str = "") -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in (folder / below).rglob("*") if p.is_file())


# --- Folders: each function writes one, and names the files to damage -------------------------------------------------


def sharded(folder: Path) -> Sequence[str]:
    write(folder / "model-00001-of-00002.safetensors", {"a": FLAT["a"]})
    write(folder / "model-00002-of-00002.safetensors", {"b": FLAT["b"]})
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return ["model.safetensors.index.json"]


def npy(folder: Path) -> Sequence[str]:
    np.save(folder / "a.npy", FLAT["a"])
    return ["a.npy"]


def npz(folder: Path) -> Sequence[str]:
    np.savez(folder / "a.npz", a=FLAT["a"], b=FLAT["b"])
    return ["a.npz"]


def torch_file(folder: Path) -> Sequence[str]:
    _saved(folder, "a.pt", FLAT)
    return ["a.pt"]


def dcp(folder: Path) -> Sequence[str]:
    _saved(folder, "x", FLAT, format="dcp")
    return _move_up(folder)


def orbax(folder: Path) -> Sequence[str]:
    """The JSON files of an orbax folder."""
    _saved(folder, "x", TREE, format="orbax")
    return [name for name in _move_up(folder) if "ocdbt" not in name and "/d/" not in f"/{name}"]


def ocdbt(folder: Path) -> Sequence[str]:
    """The database of an orbax folder."""
    _saved(folder, "x", TREE, format="orbax")
    return [name for name in _move_up(folder) if "ocdbt" in name or "/d/" in f"/{name}"]


def msgpack(folder: Path) -> Sequence[str]:
    _saved(folder, "a.msgpack", TREE)
    return ["a.msgpack"]


def hdf5(folder: Path) -> Sequence[str]:
    _saved(folder, "a.h5", FLAT)
    return ["a.h5"]


def _move_up(folder: Path) -> list[str]:
    for path in list((folder / "x").iterdir()):
        path.rename(folder / path.name)
    (folder / "x").rmdir()
    return _files(folder)


ADAPTER = {
    "peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
    "bias": "none", "rank_pattern": {}, "alpha_pattern": {"layers.0.self_attn.q_proj": 2}, "use_rslora": False,
    "fan_in_fan_out": False, "modules_to_save": None, "layers_to_transform": None, "use_dora": False,
}  # fmt: skip


def adapter(folder: Path) -> None:
    """A PEFT adapter of one matrix."""
    base = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{base}A.weight": np.ones((2, 4), np.float32), f"{base}B.weight": np.ones((4, 2), np.float32)}
    write(folder / "adapter_model.safetensors", factors)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "vocab_size": 6,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    "torch_dtype": "float32", "max_position_embeddings": 16, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 1, "vocab_size": 6, "n_positions": 8}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
GEMMA = LLAMA | {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "sliding_window": 4, "layer_types": ["x"]}


def avals_of_a_model() -> dict[str, Aval]:
    """The shapes of a Llama of one layer."""
    layer = {"self_attn.q_proj": (4, 4), "self_attn.k_proj": (2, 4), "self_attn.v_proj": (2, 4)}
    layer |= {"self_attn.o_proj": (4, 4), "mlp.gate_proj": (8, 4), "mlp.up_proj": (8, 4), "mlp.down_proj": (4, 8)}
    layer |= {"input_layernorm": (4,), "post_attention_layernorm": (4,)}
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (6, 4), "model.norm.weight": (4,), "lm_head.weight": (6, 4)}
    return {name: Aval(shape, BY_NAME["float32"]) for name, shape in shapes.items()}


# --- What the fuzzer starts from --------------------------------------------------------------------------------------

PLANS = Path(__file__).parents[2] / "plans"

ZARR_2 = {
    "zarr_format": 2, "shape": [4, 3], "chunks": [2, 3], "dtype": "<f4", "compressor": None, "fill_value": None,
    "order": "C", "filters": None, "dimension_separator": ".",
}  # fmt: skip
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_SHARDS = {"chunk_shape": [2, 3], "codecs": [_BYTES], "index_codecs": [_BYTES, {"name": "crc32c"}]}
ZARR_3 = {
    "zarr_format": 3, "node_type": "array", "shape": [4, 3], "data_type": "float32", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "sharding_indexed", "configuration": _SHARDS}],
}  # fmt: skip


def texts(name: str, folder: Path) -> list[bytes]:
    """What the target of that name starts from where it reads no checkpoint."""
    plans = fuzz_texts.corpus(PLANS)
    match name:
        case "safetensors":
            return [write(folder / "seed", FLAT).read_bytes(), write(folder / "seed", {}, {"a": "b"}).read_bytes()]
        case "zarr":
            return [b"2" + json.dumps(ZARR_2).encode(), b"3" + json.dumps(ZARR_3).encode()]
        case "pickle":
            return [make(3) for make in TRAPS.values()] + [pickle.dumps(TREE["b"]["c"].tolist(), 2)]
        case "json":
            return [json.dumps(value).encode() for value in (LLAMA, ADAPTER, ZARR_3)] + [b'{"a": [1.5e3, null]}']
        case "oly":
            return [
                b"copy: from: a, to: b",
                b"scale_: { target: 'h.*', by: 2 }",
                b"assert: equal: { left: a, right: b }",
            ]
        case "plan":
            return [text.encode() for text in plans if len(text) < 2000]
        case "config":
            return [json.dumps(value).encode() for value in (LLAMA, GPT2, MIXTRAL, GEMMA)]
        case "peft":
            return [json.dumps(ADAPTER).encode(), json.dumps(ADAPTER | {"peft_type": "DORA"}).encode()]
        case _:
            return []
