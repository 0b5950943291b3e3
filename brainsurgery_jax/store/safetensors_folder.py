"""A folder of safetensors files: which files belong to the checkpoint, and whether its index tells the truth."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError, did_you_mean
from brainsurgery_jax.store.base import TensorInfo
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import ORBAX_MARKS, TORCH_SUFFIXES, stays_inside, suffix_of
from brainsurgery_jax.store.safetensors_header import MAX_HEADER, json_object

INDEX = "model.safetensors.index.json"
REINDEX = "Fetch the checkpoint again; or, if the shards are right, delete the index, and all *.safetensors are read."
TO_CONVERT = (
    "This version does not read torch checkpoints. Convert it once, where torch is installed: "
    "`safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'model.safetensors')`."
)


def checkpoint_files(folder: str) -> tuple[list[str], dict[str, str] | None]:
    """The safetensors files of a folder by name, and the file of every tensor if there is an index."""
    with os_failures(folder, "list the folder"):
        names = sorted(os.listdir(folder))
    if INDEX in names:
        weight_map = _read_index(os.path.join(folder, INDEX))
        shards = {shard: _shard_path(folder, shard) for shard in set(weight_map.values())}
        return sorted(set(shards.values())), {name: shards[shard] for name, shard in weight_map.items()}
    files = [os.path.join(folder, name) for name in names if suffix_of(name) == ".safetensors"]
    if not files:
        raise _nothing_usable(folder, names)
    return files, None


def _nothing_usable(folder: str, names: Sequence[str]) -> StoreError:
    if not ORBAX_MARKS.isdisjoint(names):
        remedy = "This version reads safetensors only; save the parameters with safetensors.flax.save_file first."
        return StoreError(folder, "is an orbax checkpoint", remedy=remedy)
    if any(suffix_of(name) == ".distcp" for name in names):
        remedy = "This version reads safetensors; convert it with torch.distributed.checkpoint.format_utils first."
        return StoreError(folder, "is a torch distributed checkpoint", remedy=remedy)
    torch_files = [name for name in names if suffix_of(name) in TORCH_SUFFIXES]
    if torch_files:
        return StoreError(folder, f"holds torch files only ({_some(torch_files)})", remedy=TO_CONVERT)
    found = f"it holds {_some(names)}" if names else "it is empty"
    remedy = f"Name a folder with *.safetensors files or with {INDEX}, or one .safetensors file."
    return StoreError(folder, f"holds no checkpoint: {found}", remedy=remedy)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_index(path: str) -> dict[str, str]:
    with os_failures(path, "read the index"), open(path, "rb") as file:
        raw = file.read(MAX_HEADER + 1)
    if len(raw) > MAX_HEADER:
        raise StoreError(path, f"is longer than {MAX_HEADER} bytes, absurd for an index", remedy=REINDEX)
    weight_map: Any = json_object(raw, path, "index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problem = "has no weight_map with tensors in it" if not weight_map else "its weight_map is not an object"
        raise StoreError(path, problem, remedy=REINDEX)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or "\0" in shard:
            raise StoreError(path, f"names no file for it, but {shard!r}", tensor=name, remedy=REINDEX)
    return weight_map


def _shard_path(folder: str, shard: str) -> str:
    """The path of a shard that an index names. An index comes from strangers: it may not point out of its folder."""
    index, path = os.path.join(folder, INDEX), os.path.join(folder, os.path.normpath(shard))
    remedy = "An index may only name files inside its own folder; move the shard there and correct the index."
    if os.path.isabs(shard) or ".." in shard.replace("\\", "/").split("/"):
        raise StoreError(index, f"names the shard '{shard}', which is outside of its folder", remedy=remedy)
    if not stays_inside(folder, path):
        raise StoreError(index, f"names the shard '{shard}', a link that leads out of its folder", remedy=remedy)
    if not os.path.isfile(path):
        near = did_you_mean(shard, os.listdir(folder))
        raise StoreError(index, f"names the shard '{shard}', which is not there.{near}", remedy=REINDEX)
    return path


def check_placement(
    folder: str, files: Sequence[str], weight_map: Mapping[str, str], shards: Sequence[Mapping[str, TensorInfo]]
) -> None:
    """Raises StoreError unless every tensor is in the file that the index says, and the index lists every tensor."""
    index = os.path.join(folder, INDEX)
    holds = dict(zip(files, shards, strict=True))
    for name, path in weight_map.items():
        if name not in holds[path]:
            elsewhere = [os.path.basename(other) for other, tensors in holds.items() if name in tensors]
            found = f"it is in {elsewhere[0]}" if elsewhere else "no shard holds it"
            raise StoreError(index, f"should be in {os.path.basename(path)}, but {found}", tensor=name, remedy=REINDEX)
    for path, tensors in holds.items():
        for name in tensors:
            if weight_map.get(name) != path:
                listed = (
                    f"lists it in {os.path.basename(weight_map[name])}" if name in weight_map else "does not list it"
                )
                problem = f"is in {os.path.basename(path)}, but the index {listed}"
                raise StoreError(index, problem, tensor=name, remedy=REINDEX)


def merge(files: Sequence[str], shards: Sequence[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """All tensors of all files; a name that two files hold is a StoreError."""
    tensors: dict[str, TensorInfo] = {}
    for path, shard in zip(files, shards, strict=True):
        if twice := tensors.keys() & shard.keys():
            name = min(twice)
            problem = f"is also in {files[tensors[name].file]}, and no {INDEX} says which one counts"
            remedy = "Name one of the files instead of the folder, or move the file that does not belong there."
            raise StoreError(path, problem, tensor=name, remedy=remedy)
        tensors.update(shard)
    return tensors


def shard_name(number: int, total: int) -> str:
    """The stock name of a shard; numbers start at 1."""
    return f"model-{number:05d}-of-{total:05d}.safetensors"


def encode_index(avals: Mapping[str, Aval], weight_map: Mapping[str, str]) -> bytes:
    """The index file of a sharded checkpoint."""
    total = sum(aval.nbytes for aval in avals.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(weight_map)}
    return json.dumps(index, indent=2, ensure_ascii=False).encode()
