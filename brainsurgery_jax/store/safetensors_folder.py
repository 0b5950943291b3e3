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
from brainsurgery_jax.store.folder import stays_inside, suffix_of
from brainsurgery_jax.store.safetensors_header import MAX_HEADER, json_object

INDEX = "model.safetensors.index.json"
REINDEX = "Fetch the checkpoint again, whole: index and shards must be of one save."


def checkpoint_files(folder: str) -> tuple[list[str], dict[str, str] | None]:
    """The safetensors files of a folder by name, and the file of every tensor if there is an index."""
    with os_failures(folder, "list the folder"):
        names = sorted(os.listdir(folder))
    if INDEX in names:
        return indexed_files(folder, INDEX)
    files = [os.path.join(folder, name) for name in names if suffix_of(name) == ".safetensors"]
    if not files:
        remedy = f"Name a folder with *.safetensors files or with {INDEX}, or one .safetensors file."
        raise StoreError(folder, "holds no safetensors file", remedy=remedy)
    return files, None


def indexed_files(folder: str, index: str) -> tuple[list[str], dict[str, str]]:
    """The files that an index of that name lists, by name, and the file of every tensor."""
    weight_map = _read_index(os.path.join(folder, index))
    shards = {shard: shard_path(folder, shard, index) for shard in set(weight_map.values())}
    return sorted(set(shards.values())), {name: shards[shard] for name, shard in weight_map.items()}


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


def shard_path(folder: str, shard: str, index: str) -> str:
    """The path of a shard that an index names. An index comes from strangers: it may not point out of its folder."""
    index, path = os.path.join(folder, index), os.path.join(folder, os.path.normpath(shard))
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
    index: str, files: Sequence[str], weight_map: Mapping[str, str], shards: Sequence[Mapping[str, TensorInfo]]
) -> None:
    """Raises StoreError unless every tensor is in the file that the index says, and the index lists every tensor."""
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


def merge(
    files: Sequence[str], shards: Sequence[Mapping[str, TensorInfo]], index: str = INDEX
) -> dict[str, TensorInfo]:
    """All tensors of all files; a name that two files hold is a StoreError."""
    tensors: dict[str, TensorInfo] = {}
    for path, shard in zip(files, shards, strict=True):
        if twice := tensors.keys() & shard.keys():
            name = min(twice)
            problem = f"is also in {files[tensors[name].file]}, and no {index} says which one counts"
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
