"""What belongs to a checkpoint folder: weight files, other files, and links that stay inside."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

_TWO_PARTS = (".pth.tar", ".pt.tar")
TORCH_SUFFIXES = frozenset({".bin", ".pt", ".pth", *_TWO_PARTS})
WEIGHT_SUFFIXES = TORCH_SUFFIXES | {
    ".safetensors", ".ckpt", ".distcp", ".h5", ".hdf5", ".msgpack", ".onnx", ".gguf", ".npz", ".npy", ".eqx",
}  # fmt: skip
_TRAINER_FILES = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
"""How files begin that trainers leave beside the weights."""

_STEMS = (
    "model", "pytorch_model", "tf_model", "flax_model", "diffusion_pytorch_model", "diffusion_flax_model",
    "open_clip_model", "open_clip_pytorch_model", "adapter_model", "adapter", "adapters", "consolidated", "weights",
)  # fmt: skip
_STOCK = re.compile(rf"(?:{'|'.join(_STEMS)})(?:\.\w+)*(?:-\d+-of-\d+)?")

ORBAX_MARKS = frozenset({"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"})
AGGREGATE = "checkpoint"
"""The file of small leaves, and of the names of the others, that T5X writes, as orbax did before version 0.5."""
ORBAX_FILES = ORBAX_MARKS | {AGGREGATE, "_sharding", "_strings.json", "commit_success.txt", "orbax.checkpoint"}
"""Small files that orbax puts beside the tensors."""

ADAPTER_CONFIG, ADAPTER, OLD_ADAPTER = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
"""The files of a PEFT adapter."""

LOCKFILE = "brainsurgery.lock.json"

DELTA, DELTA_MANIFEST = "delta.safetensors", "brainsurgery.delta.json"
"""The files of a delta."""


def suffix_of(path: str) -> str:
    """The suffix in lower case with its dot, or an empty string; of files of torch also `.pth.tar`."""
    both = next((suffix for suffix in _TWO_PARTS if path.lower().endswith(suffix)), "")
    return both or os.path.splitext(path)[1].lower()


def is_weights(name: str) -> bool:
    """Whether a file may hold the weights of a model, by its name: what trainers keep beside them does not count."""
    return suffix_of(name) in WEIGHT_SUFFIXES and not name.startswith(_TRAINER_FILES)


def is_stock_weights(name: str) -> bool:
    """Whether a file has one of the names under which libraries write the weights of a model."""
    return is_weights(name) and _STOCK.fullmatch(os.path.splitext(name)[0]) is not None


def holds_adapter(names: Collection[str]) -> bool:
    """Whether these are the files of a PEFT adapter."""
    return ADAPTER_CONFIG in names and (ADAPTER in names or OLD_ADAPTER in names)


def stays_inside(folder: str, path: str) -> bool:
    """Whether `path`, with all its links followed, lies in `folder`.

    The cache of the Hugging Face hub is `snapshots/REVISION/NAME -> ../../blobs/HASH`: its `blobs` count as inside.
    """
    root = os.path.realpath(folder)
    roots = [root]
    above, parent = os.path.split(os.path.dirname(root))
    if parent == "snapshots":
        roots.append(os.path.join(above, "blobs"))
    target = os.path.realpath(path)
    return any(os.path.commonpath([root, target]) == root for root in roots)
