"""Formats that are not read, so that a checkpoint of one of them is called what it is, with a way to its tensors."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError

HEAD = 16
"""Bytes at the beginning of a file that tell its format."""

_BY_NAME = "Load it with its own library, and save its arrays by name: `numpy.savez('model.npz', **arrays)`."

_UNPACK = "Unpack it, and name what was in it."


class UnreadFormat(NamedTuple):
    """A format: how its files end or begin (at an offset), which files a folder of it holds, and what to do. `alone`: a
    file of it does not tell what the folder is that holds it."""

    what: str
    suffixes: tuple[str, ...] = ()
    begins: bytes = b""
    at: int = 0
    marks: tuple[str, ...] = ()
    remedy: str = _BY_NAME
    alone: bool = False


UNREAD: tuple[UnreadFormat, ...] = (
    UnreadFormat(
        "a GGUF file of llama.cpp", (".gguf", ".ggml"), b"GGUF",
        remedy="Read the checkpoint that it was made from: its tensors are quantized in a way of their own.",
    ),
    UnreadFormat("a graph of ONNX", (".onnx",), remedy="Read the checkpoint that it was exported from."),
    UnreadFormat(
        "a graph of TensorFlow Lite", (".tflite",), b"TFL3", 4, remedy="Read the checkpoint that it was exported from."
    ),
    UnreadFormat("an archive of Keras", (".keras",), remedy="Unpack it, and read the file of weights in it: `unzip`."),
    UnreadFormat("a checkpoint of TensorFlow", (".index", ".data-00000-of-00001"), marks=("checkpoint.index",)),
    UnreadFormat("a SavedModel of TensorFlow", marks=("saved_model.pb",)),
    UnreadFormat("a checkpoint of PaddlePaddle", (".pdparams", ".pdopt")),
    UnreadFormat("an archive of NeMo", (".nemo",), remedy="Unpack it, and read the weights in it: `tar -xf`."),
    UnreadFormat("a model of Core ML", (".mlmodel", ".mlpackage")),
    UnreadFormat("an archive", (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst"), remedy=_UNPACK, alone=True),
    UnreadFormat("a compressed file", (".gz", ".xz", ".bz2", ".zst"), b"\x1f\x8b", remedy=_UNPACK, alone=True),
    UnreadFormat("a pickle of Python, of which nothing is run", (".pkl", ".pickle", ".joblib")),
    UnreadFormat("a pickle of Python, of which nothing is run", begins=b"\x80\x02}"),
    UnreadFormat("a pickle of Python, of which nothing is run", begins=b"\x80\x03}"),
    UnreadFormat("a pickle of Python, of which nothing is run", begins=b"\x80\x04\x95"),
    UnreadFormat("a pickle of Python, of which nothing is run", begins=b"\x80\x05\x95"),
)  # fmt: skip


def refuse_unread_file(path: str, head: bytes) -> None:
    """Raises StoreError for a file of one of these formats, by its suffix or by its first bytes."""
    name = os.path.basename(path).lower()
    for format in UNREAD:
        if name.endswith(format.suffixes) or (format.begins and head[format.at :].startswith(format.begins)):
            raise StoreError(path, f"is {format.what}, a format that is not read", remedy=format.remedy)


def refuse_unread_folder(folder: str, names: Collection[str]) -> None:
    """Raises StoreError for a folder that holds such a checkpoint, and no other."""
    for format in UNREAD:
        if format.alone:
            continue
        if any(mark in names for mark in format.marks):
            raise StoreError(folder, f"holds {format.what}, a format that is not read", remedy=format.remedy)
        if found := next((name for name in names if format.suffixes and name.lower().endswith(format.suffixes)), None):
            problem = f"holds {format.what}, a format that is not read: {found}"
            raise StoreError(folder, problem, remedy=format.remedy)
