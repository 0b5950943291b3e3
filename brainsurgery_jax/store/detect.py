"""From a path to a store: which source reads it, and what an output path means."""

from __future__ import annotations

import os
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError, did_you_mean
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.folder import TORCH_SUFFIXES, WEIGHT_SUFFIXES, suffix_of
from brainsurgery_jax.store.safetensors import SafetensorsSource
from brainsurgery_jax.store.safetensors_folder import TO_CONVERT
from brainsurgery_jax.store.sizes import parse_size as parse_size

_OTHER_FORMATS = ("torch", "dcp", "orbax", "npz", "npy", "numpy")


def open_source(path: str) -> Source:
    """The source for a checkpoint file or folder; `~` is the home folder."""
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise _missing(path)
    if os.path.isdir(path):
        return SafetensorsSource(path)
    suffix = suffix_of(path)
    if not os.path.isfile(path):
        raise StoreError(path, "is neither a file nor a folder", remedy="Name a .safetensors file or a folder of them.")
    if suffix in TORCH_SUFFIXES:
        raise StoreError(path, "is a torch checkpoint", remedy=TO_CONVERT)
    if path.endswith(".safetensors.index.json"):
        remedy = f"Name its folder instead: {os.path.dirname(path) or '.'}"
        raise StoreError(path, "is the index of a checkpoint, not the checkpoint", remedy=remedy)
    if suffix != ".safetensors":
        remedy = "This version reads safetensors. If it is such a file, give it a name that ends in .safetensors."
        raise StoreError(path, f"has the suffix '{suffix}', which tells no format that can be read", remedy=remedy)
    return SafetensorsSource(path)


def _missing(path: str) -> StoreError:
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.islink(path):
        return StoreError(path, "is a link to a file that is not there", remedy="Restore the file, or fix the link.")
    if not os.path.isdir(folder):
        return StoreError(path, f"does not exist, nor does the folder {folder}", remedy="Check the path.")
    near = did_you_mean(name, (other for other in os.listdir(folder) if not other.startswith(".")))
    remedy = "" if os.path.isabs(path) else f"Relative paths start at the current folder, {os.getcwd()}."
    return StoreError(path, f"does not exist.{near}", remedy=remedy)


class OutputKind(NamedTuple):
    """What an output path means: where, one file or a folder, the format, and the shard size if one was given."""

    path: str
    directory: bool
    format: str = "safetensors"
    shard_bytes: int | None = None


def output_kind(path: str, format: str | None = None, shard: str | None = None) -> OutputKind:
    """The one path rule: the suffix decides; without one, at an existing folder, or with a final slash it is a folder.

    A folder whose name has a dot (`llama-3.1`) needs the slash or `format: safetensors`. ValueError says what is wrong.
    """
    _check_format(format)
    if not path.strip():
        raise ValueError("the output path is empty. Name a folder, or a file that ends in .safetensors.")
    directory = _is_directory(os.path.expanduser(path), explicit=format is not None)
    shard_bytes = None if shard is None else parse_size(shard)
    if shard_bytes is not None and not directory:
        raise ValueError(
            f"'{path}' is one file, and a shard size needs a folder. "
            f"Drop `shard`, or write to '{path[: -len('.safetensors')]}/'."
        )
    return OutputKind(os.path.expanduser(path), directory, "safetensors", shard_bytes)


def _check_format(format: str | None) -> None:
    if format in _OTHER_FORMATS:
        raise ValueError(
            f"format '{format}' cannot be written by this version. Write `format: safetensors`, or drop it."
        )
    if format not in (None, "safetensors"):
        near = did_you_mean(format, ("safetensors", *_OTHER_FORMATS))
        raise ValueError(f"unknown format '{format}'.{near} This version writes safetensors.")


def _is_directory(path: str, *, explicit: bool) -> bool:
    suffix = suffix_of(path)
    if path.endswith(("/", os.sep)) or os.path.isdir(path) or not suffix:
        return True
    if suffix == ".safetensors":
        return False
    if suffix in WEIGHT_SUFFIXES:
        raise ValueError(
            f"'{path}' ends in {suffix}, and this version writes safetensors. "
            f"Write to '{path[: -len(suffix)]}.safetensors', or to a folder."
        )
    if explicit:
        return True
    raise ValueError(
        f"'{path}' ends in '{suffix}', which tells no format. For a folder of that name write '{path}/' or add "
        "`format: safetensors`; for a file use the suffix .safetensors."
    )
