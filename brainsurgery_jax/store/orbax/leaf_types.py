"""Marks in an orbax checkpoint of what type its leaves are: arrays of JAX, keys of random numbers, Python numbers.

orbax is given memory maps, since an array of JAX would have to be in memory, and on a device. So it takes all leaves
for arrays of numpy. What it writes for others differs in its tables alone, and these are small: `_METADATA` tells who
holds a leaf, `_sharding` where, and `array_metadatas` that numbers are a key.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence

from brainsurgery_jax.store.key_tree import JAX, SCALAR, LeafType
from brainsurgery_jax.store.orbax.folder import ARRAYS, KEY_KIND, SHARDING, TREE

_SINGLE = "SingleDeviceSharding"
_ON_CPU = json.dumps({"sharding_type": _SINGLE, "device_str": "cpu:0"})


def mark_types(folder: str, types: Mapping[str, LeafType], shapes: Mapping[str, Sequence[int]]) -> None:
    """Mark the leaves of a tree that are no arrays of numpy. Types and shapes are by the keys of orbax."""
    marked = {place: kind for place, kind in types.items() if kind.holder in (JAX, SCALAR)}
    if not marked:
        return
    path = os.path.join(folder, TREE)
    with open(path, encoding="utf-8") as file:
        table = json.load(file)
    for entry in table["tree_metadata"].values():
        place = ".".join(str(key["key"]) for key in entry["key_metadata"])
        if place in marked:
            shape = {"write_shape": list(shapes[place])} if marked[place].holder == JAX else {}
            entry["value_metadata"] |= {"value_type": marked[place].holder, **shape}
    _write(path, table)
    _mark_arrays(folder, {place: kind for place, kind in marked.items() if kind.holder == JAX}, shapes)


def _mark_arrays(folder: str, ours: Mapping[str, LeafType], shapes: Mapping[str, Sequence[int]]) -> None:
    """Tell where arrays of JAX are, and what they stand for."""
    usual = next((kind.sharding for kind in ours.values() if _SINGLE in kind.sharding), _ON_CPU)
    places = {b64encode(place.encode()).decode(): kind.sharding or usual for place, kind in ours.items()}
    _write(os.path.join(folder, SHARDING), places)
    os.makedirs(os.path.join(folder, ARRAYS), exist_ok=True)
    rows = [{"array_metadata": _array(place, list(shapes[place]), kind)} for place, kind in ours.items()]
    _write(os.path.join(folder, ARRAYS, "process_0"), {"array_metadatas": rows})


def _array(place: str, shape: list[int], kind: LeafType) -> dict[str, object]:
    more = {KEY_KIND: kind.key} if kind.key else None
    return {"param_name": place, "write_shape": shape, "chunk_shape": shape, "ext_metadata": more}


def _write(path: str, table: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(table, file)
