"""The folder of an orbax checkpoint: where in it the tree of tensors lies, whether it is complete, what it says.

A tree is a folder with `_METADATA`. It may be the checkpoint itself (the first API of orbax), lie in it as `state` (the
second), as `items` or `default` (checkpoint managers), and these in a folder named by the step.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.flax.wire import begins_map
from brainsurgery_jax.store.folder import AGGREGATE, ORBAX_MARKS
from brainsurgery_jax.store.key_paths import NOTES, BoxKey, KeyNotes, ListIndex, Path, TupleIndex, name_of, read_notes
from brainsurgery_jax.store.key_tree import EMPTY, TEXT, KeyTree, LeafType, OtherLeaf, told

TREE = "_METADATA"
CHECKPOINT = "_CHECKPOINT_METADATA"
DONE = "commit_success.txt"
MANIFEST = "manifest.ocdbt"
STRINGS = "_strings.json"
STATE = "state"
SHARDING = "_sharding"
ARRAYS = "array_metadatas"
BOX = "value"
"""The key that a variable of Flax adds to the path of its leaf."""

KEY_KIND = "random_key_impl"
UNDONE = (".orbax-checkpoint-tmp", ".partial_save")
"""Marks in the names of folders that orbax has not finished saving."""
_AGAIN = "Its save was cut off, or a copy of it is incomplete: save or copy it again, or name an earlier step."


class OrbaxTree(NamedTuple):
    """What the folder of a tree says of it: the leaves' key paths in order, how they are stored, the metadata.

    `tree` is what lies beside tensors, and of what type they are. `filled`: every chunk is said to be stored, also one
    of zeros, so that one that is missing is lost. `places`: where leaves lie that do not lie under their names.
    `aggregated`: some leaves lie in the file AGGREGATE.
    """

    folder: str
    paths: tuple[Path, ...]
    drivers: tuple[str, ...]
    ocdbt: bool
    filled: bool
    metadata: Mapping[str, str]
    tree: KeyTree
    places: Mapping[str, str] = {}
    aggregated: bool = False


def recognises(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it is an orbax checkpoint, or holds steps that are."""
    if not ORBAX_MARKS.isdisjoint(names) or is_aggregate(folder):
        return True
    return any(_is_tree(os.path.join(folder, name)) or _items(os.path.join(folder, name)) for name in names)


def find(path: str) -> str:
    """The folder of the tree that a path means. A StoreError lists those there are, where it might be several."""
    with os_failures(path, "list the folder"):
        found = [path] if _is_tree(path) else _items(path) or _of_steps(path)
        if not found:
            raise _nothing(path)
        if len(found) > 1:
            raise _ambiguous(path, found, "trees of tensors")
        _refuse_undone(os.path.dirname(os.path.abspath(found[0])))
        _refuse_undone(found[0])
    return found[0]


def _of_steps(path: str) -> list[str]:
    """The trees of the only step in a folder of steps."""
    steps = [step for step in _folders(path) if _items(step)]
    if len(steps) > 1:
        raise _ambiguous(path, steps, "steps")
    return [tree for step in steps for tree in _items(step)]


def _is_tree(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, TREE)) or is_aggregate(folder)


def is_aggregate(folder: str) -> bool:
    """Whether a folder has no tree of its own, and a file that lists the leaves as orbax did at first."""
    path = os.path.join(folder, AGGREGATE)
    if os.path.isfile(os.path.join(folder, TREE)) or not os.path.isfile(path):
        return False
    with os_failures(path, "read the file"), open_regular(path) as file:
        return begins_map(file.read(6))


def _folders(path: str) -> list[str]:
    """The folders in a folder, those of unfinished saves left out; steps in order of their numbers."""
    if not os.path.isdir(path):
        return []
    inner = [entry.path for entry in os.scandir(path) if entry.is_dir() and not _is_undone(entry.name)]
    return sorted(inner, key=_by_number)


def _by_number(path: str) -> tuple[int, str]:
    name = os.path.basename(path)
    return (int(name) if name.isdecimal() else -1), name


def _items(path: str) -> list[str]:
    return [folder for folder in _folders(path) if _is_tree(folder)]


def _is_undone(name: str) -> bool:
    return any(mark in name for mark in UNDONE)


def _refuse_undone(folder: str) -> None:
    """Raises StoreError if a checkpoint is marked as one whose save was not finished."""
    if _is_undone(os.path.basename(os.path.abspath(folder))):
        raise StoreError(folder, "is an orbax checkpoint of which only a part was written", remedy=_AGAIN)
    table = _json(os.path.join(folder, CHECKPOINT))
    committed = os.path.exists(os.path.join(folder, DONE)) or table is None or table.get("commit_timestamp_nsecs")
    if not committed:
        problem = f"is an orbax checkpoint of which only a part was written: it has no {DONE}"
        raise StoreError(folder, problem, remedy=_AGAIN)


def _ambiguous(path: str, found: Sequence[str], what: str) -> StoreError:
    shown = ", ".join(os.path.relpath(folder, path) for folder in found[-8:])
    problem = f"holds {len(found)} {what}: {'... ' if len(found) > 8 else ''}{shown}"
    usual = [folder for folder in found if os.path.basename(folder) in (STATE, "items", "default")]
    return StoreError(path, problem, remedy=f"Name one, for example {(usual or found)[-1]}.")


def _nothing(path: str) -> StoreError:
    undone = [name for name in sorted(os.listdir(path)) if _is_undone(name)]
    if undone:
        return StoreError(path, f"holds only what an unfinished save left: {undone[-1]}", remedy=_AGAIN)
    problem = f"is an orbax checkpoint without a tree of tensors: no {TREE} in it, nor in a folder of it"
    return StoreError(path, problem, remedy=_AGAIN)


def read_tree(folder: str) -> OrbaxTree:
    """All that the small files of a tree's folder say."""
    path = os.path.join(folder, TREE)
    if (table := _json(path)) is None:
        raise StoreError(path, "is missing, without which no tensor can be found", remedy=_AGAIN)
    try:
        found = [(_path(entry["key_metadata"]), entry["value_metadata"]) for entry in table["tree_metadata"].values()]
        kinds = [str(value["value_type"]) for _, value in found]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(path, f"is not the metadata of a tree: {error!r}", remedy=_AGAIN) from error
    given = _custom_metadata(folder, table)
    notes = read_notes(given)
    recalled = [_recall(keys, notes) for keys, _ in found]
    entries = dict(zip(recalled if notes.unboxed else mark_boxes(recalled), kinds, strict=True))
    if len({*map(name_of, entries)}) < len(found):
        problem = "holds two leaves of one name: keys with a dot in them beside nested ones"
        raise StoreError(folder, problem, remedy="Restore it with orbax, and save it with other keys.")
    ocdbt = bool(table.get("use_ocdbt", os.path.exists(os.path.join(folder, MANIFEST))))
    if ocdbt and not os.path.exists(os.path.join(folder, MANIFEST)):
        raise StoreError(folder, f"its {MANIFEST} is missing, without which no tensor can be found", remedy=_AGAIN)
    aggregated = {keys for (keys, value) in found if value.get("skip_deserialize") and _is_array(value["value_type"])}
    paths = tuple(path for path, kind in entries.items() if _is_array(kind) and path not in aggregated)
    drivers = ("zarr3",) if table.get("use_zarr3") else ("zarr",) if "use_zarr3" in table else ("zarr", "zarr3")
    filled = bool(table.get("store_array_data_equal_to_fill_value", False))
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    metadata.pop(NOTES, None)
    tree = _key_tree(folder, entries, tuple(key for key, value in given.items() if not isinstance(value, str)))
    return OrbaxTree(folder, paths, drivers, ocdbt, filled, metadata, tree, aggregated=bool(aggregated))


def _path(keys: Sequence[Mapping[str, Any]]) -> Path:
    return tuple(ListIndex(k["key"]) if k["key_type"] == 1 else str(k["key"]) for k in keys)


def _recall(path: Path, notes: KeyNotes) -> Path:
    """A path completed by our own notes on its keys, which orbax does not store: tuples, integers, boxes."""
    if notes == KeyNotes():
        return path
    keys = list(path)
    for depth, key in enumerate(path):
        above = name_of(path[:depth])
        if isinstance(key, ListIndex) and above in notes.tuples:
            keys[depth] = TupleIndex(key)
        elif isinstance(key, str) and above in notes.integers and key.removeprefix("-").isdecimal():
            keys[depth] = int(key)
    box = notes.boxed.get(name_of(path[:-1])) or notes.boxed.get("")
    return (*keys[:-1], BoxKey(keys[-1])) if box == keys[-1] else tuple(keys)


def mark_boxes(paths: Sequence[Path]) -> list[Path]:
    """Paths with the boxes of Flax variables marked, which orbax does not tell from dicts: a last key `value` of a dict
    that holds nothing else."""
    leaves = Counter(path[:depth] for path in paths for depth in range(1, len(path)))
    return [
        (*path[:-1], BoxKey(BOX)) if path[-1:] == (BOX,) and len(path) > 1 and leaves[path[:-1]] == 1 else path
        for path in paths
    ]


def place_of(path: Path) -> str:
    """The key under which orbax stores the leaf at a path."""
    return ".".join(map(str, path))


def _is_array(kind: str) -> bool:
    return kind not in (TEXT, *EMPTY)


def _custom_metadata(folder: str, table: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for place in (os.path.dirname(folder), folder):
        given |= (_json(os.path.join(place, CHECKPOINT)) or {}).get("custom_metadata") or {}
    return {str(key): value for key, value in (given | (table.get("custom_metadata") or {})).items()}


def _key_tree(folder: str, entries: Mapping[Path, str], texts_as_json: tuple[str, ...]) -> KeyTree:
    """The tree beside its tensors."""
    strings = _json(os.path.join(folder, STRINGS)) or {}
    shardings = _json(os.path.join(folder, SHARDING)) or {}
    keys = _random_keys(folder)
    others: dict[str, OtherLeaf] = {}
    types: dict[str, LeafType] = {}
    for path, kind in entries.items():
        name, place = name_of(path), place_of(path)
        if _is_array(kind):
            sharding = shardings.get(b64encode(place.encode()).decode(), "")
            types[name] = LeafType(kind, keys.get(place, ""), "", str(sharding))
        else:
            others[name] = OtherLeaf(kind, str(strings.get(place, "")) if kind == TEXT else "")
    paths = {name_of(path): path for path in entries}
    return KeyTree(told(paths), others, types, texts_as_json, known=True)


def _random_keys(folder: str) -> dict[str, str]:
    """The kinds of keys of random numbers, by the key that orbax stores them under."""
    place = os.path.join(folder, ARRAYS)
    files = sorted(os.listdir(place)) if os.path.isdir(place) else []
    table = _json(os.path.join(place, files[0])) if files else None
    rows = (row.get("array_metadata") for row in (table or {}).get("array_metadatas", ()) if isinstance(row, dict))
    found = ((row["param_name"], row.get("ext_metadata") or {}) for row in rows if isinstance(row, dict))
    return {str(name): str(more[KEY_KIND]) for name, more in found if KEY_KIND in more}


def _json(path: str) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is no such file."""
    try:
        with os_failures(path, "read the file"):
            try:
                file = open_regular(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            with file:
                table = json.load(file)
    except ValueError as error:
        raise StoreError(path, f"is not valid JSON: {error}", remedy=_AGAIN) from error
    if not isinstance(table, dict):
        raise StoreError(path, f"is a JSON {type(table).__name__}, expected an object", remedy=_AGAIN)
    return table
