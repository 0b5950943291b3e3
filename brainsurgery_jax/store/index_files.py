"""The index of a sharded checkpoint: the files that it names, whether it is correct, and how it is written.
Format: https://huggingface.co/docs/transformers/big_models#sharded-checkpoints
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError, did_you_mean
from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.store.base import Note, TensorInfo
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import stays_inside
from brainsurgery_jax.store.safetensors.header import MAX_HEADER, json_object
from brainsurgery_jax.store.weight_names import is_shard
from brainsurgery_jax.wording import few

INDEX = "model.safetensors.index.json"
AGAIN = "Fetch the index and the shards again: they are not of one version."
_INDEX_AGAIN = "Fetch the index again."
_SHARD_AGAIN = "Fetch that file, too."


def read_index(index: str) -> tuple[list[str], dict[str, str]]:
    """The files that an index lists, by name, and the file of every tensor."""
    weight_map = _read_weight_map(index)
    folder, name = os.path.split(index)
    shards = {shard: shard_path(folder, shard, name) for shard in set(weight_map.values())}
    return sorted(set(shards.values())), {name: shards[shard] for name, shard in weight_map.items()}


def _read_weight_map(path: str) -> dict[str, str]:
    with os_failures(path, "read the index"), open_regular(path) as file:
        raw = file.read(MAX_HEADER + 1)
    if len(raw) > MAX_HEADER:
        raise StoreError(path, f"is longer than {MAX_HEADER} bytes, absurd for an index", remedy=_INDEX_AGAIN)
    table = _parse_plain(raw)
    weight_map: object = (json_object(raw, path, "index") if table is None else table).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problem = "has no weight_map with tensors in it" if not weight_map else "its weight_map is not an object"
        raise StoreError(path, problem, remedy=_INDEX_AGAIN)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or "\0" in shard:
            raise StoreError(path, f"names no file for it, but {shard!r}", tensor=name, remedy=_INDEX_AGAIN)
    return weight_map


def _parse_plain(raw: bytes) -> dict[str, object] | None:
    """An index of a map of texts beside a map of numbers, as writers make it; None for anything else. That no key is
    repeated is found by counting strings, as for headers."""
    try:
        table = None if b"\\" in raw else json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, dict) or not all(isinstance(part, dict) for part in table.values()):
        return None
    strings = len(table)
    for part in table.values():
        strings += len(part) + sum([type(value) is str for value in part.values()])
        if {dict, list} & set(map(type, part.values())):
            return None
    return table if raw.count(b'"') == 2 * strings else None


def shard_path(folder: str, shard: str, index: str, lost: str = _SHARD_AGAIN) -> str:
    """The path of a shard that an index names. An index comes from strangers: it may not point out of its folder.
    `lost` is the remedy for a missing shard."""
    index, path = os.path.join(folder, index), os.path.join(folder, os.path.normpath(shard))
    remedy = "An index may only name files inside its own folder; move the shard there and correct the index."
    if os.path.isabs(shard) or ".." in shard.replace("\\", "/").split("/"):
        raise StoreError(index, f"names the shard '{shard}', which is outside of its folder", remedy=remedy)
    if "\0" in shard:
        raise StoreError(index, f"names the shard {shard!r}, which no file can be called", remedy=lost)
    if not stays_inside(folder, path):
        raise StoreError(index, f"names the shard '{shard}', a link that leads out of its folder", remedy=remedy)
    if not os.path.isfile(path):
        near = "" if is_shard(shard) else did_you_mean(shard, os.listdir(folder or "."))  # another number is no typo
        raise StoreError(index, f"names the shard '{shard}', which is not there.{near}", remedy=lost)
    return path


class Indexed(NamedTuple):
    """What an index lists: the file of every tensor. `path` is its own, `named` whether the user named it as the
    checkpoint; `unlisted` are files beside those that it lists which are shards by their names."""

    path: str
    weight_map: Mapping[str, str]
    named: bool = False
    unlisted: tuple[str, ...] = ()


def place(
    index: Indexed, files: Sequence[str], shards: Sequence[Mapping[str, TensorInfo]]
) -> tuple[Sequence[Mapping[str, TensorInfo]], tuple[Note, ...]]:
    """The tensors of each file that an index lists there. Raises StoreError for one that is not where the index says;
    and, unless the index itself was named as the checkpoint, for tensors and shards that it does not list."""
    holds, weight_map = dict(zip(files, shards, strict=True)), index.weight_map
    found: dict[str, str] = {}
    for path, tensors in holds.items():
        found.update(dict.fromkeys(tensors, path))
    if found == weight_map and len(found) == sum(map(len, shards)) and not index.unlisted:
        return list(shards), ()
    for name, path in weight_map.items():
        if name not in holds[path]:
            raise _wrong_shard(index, name, [other for other, tensors in holds.items() if name in tensors])
    if index.unlisted and not index.named:
        problem = f"does not list '{index.unlisted[0]}', which is a shard by its name"
        raise StoreError(index.path, problem, remedy=f"{_by_index_alone(index)} Else fetch the index again.")
    extra = [(name, path) for path, tensors in holds.items() for name in tensors if weight_map.get(name) != path]
    if not extra:
        return list(shards), ()
    if not index.named:
        raise _not_in_index(index, *extra[0])
    kept = [{n: info for n, info in tensors.items() if weight_map.get(n) == path} for path, tensors in holds.items()]
    message = (
        f"{index.path} does not list tensors that lie in its shards; they are not read: {few([n for n, _ in extra])}"
    )
    return kept, (Note("input-ignored", message, "To read them, too, add them to the index."),)


def _wrong_shard(index: Indexed, name: str, elsewhere: Sequence[str]) -> StoreError:
    should = f"should be in {os.path.basename(index.weight_map[name])}"
    if not elsewhere:
        also = f"; nor is '{index.unlisted[0]}' listed, a shard by its name" if index.unlisted else ""
        return StoreError(index.path, f"{should}, but no shard holds it{also}", tensor=name, remedy=AGAIN)
    other = os.path.relpath(elsewhere[0], os.path.dirname(index.path) or ".")
    remedy = f'{AGAIN} Or, if the shards are right, correct the index: "{name}": "{other}".'
    problem = f"{should}, but it is in {os.path.basename(other)}"
    return StoreError(index.path, problem, tensor=name, remedy=remedy)


def _not_in_index(index: Indexed, name: str, path: str) -> StoreError:
    elsewhere = index.weight_map.get(name)
    listed = "does not list it" if elsewhere is None else f"lists it in {os.path.basename(elsewhere)}"
    add = "If it belongs to the model, add it to the index." if elsewhere is None else "The other copy is then ignored."
    problem = f"is in {os.path.basename(path)}, but the index {listed}"
    return StoreError(index.path, problem, tensor=name, remedy=f"{_by_index_alone(index)} {add}")


def _by_index_alone(index: Indexed) -> str:
    return f"To read what the index lists and no more, name the index: '{index.path}'."


def merge(files: Sequence[str], shards: Sequence[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """All tensors of all files; a name that two files hold is a StoreError."""
    tensors: dict[str, TensorInfo] = {}
    for path, shard in zip(files, shards, strict=True):
        if twice := tensors.keys() & shard.keys():
            name = min(twice)
            other = files[tensors[name].file]
            problem = f"is also in {other}, and no index says which one counts"
            remedy = f"Name one of the files instead of the folder: '{other}' or '{path}'."
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
