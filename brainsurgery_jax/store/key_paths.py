"""Names of tensors and the trees that they denote: `params.layers.0.w` is `{"params": {"layers": [{"w": ...}]}}`.

A name alone does not distinguish a list from a dict, or `a.b` from `a` and `b`; the keys of its path do
(`key_tree.py`). A format without trees keeps these keys as notes in the metadata, under `brainsurgery.keys`, so that
the tree can be restored. Without notes, every segment of a name is a key of a dict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from brainsurgery_jax.json_text import parse_json

NOTES = "brainsurgery.keys"
"""The metadata key of the notes."""


class ListIndex(int):
    """A place in a list, in a key path; a plain `int` is a key of a dict."""


class TupleIndex(ListIndex):
    """A place in a tuple, in a key path."""


class BoxKey(str):
    """A key that a box around a leaf adds to its path, such as `value` of a Flax variable. Names leave it out."""


class Spelled(str):
    """The text of a key of a dict that is neither text nor an integer, in a key path."""


Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class KeyNotes:
    """What names leave open. Containers go by the name that a tensor in their place would have; the root's is empty.

    - `lists`, `tuples`: the containers that are sequences; `integers`: dicts whose keys are integers
    - `dotted`: how many dots the last key of a name holds, where there are any
    - `strings`: leaves that are text; `scalars`: tensors that are Python numbers; `empty`: what holds nothing, by kind
    - `keys`: keys of random numbers, by their kind; `stored`: what is stored as a narrower type than it is read in
    - `boxed`: the key that the box around a leaf adds, by the name of the leaf; of all leaves, if the name is empty
    - `json`: metadata whose text is JSON, since it was no text
    - `unboxed`: there are no other boxes, whatever keys are called
    """

    lists: tuple[str, ...] = ()
    tuples: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    dotted: Mapping[str, int] = field(default_factory=dict)
    strings: Mapping[str, str] = field(default_factory=dict)
    scalars: tuple[str, ...] = ()
    empty: Mapping[str, str] = field(default_factory=dict)
    json: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    boxed: Mapping[str, str] = field(default_factory=dict)
    unboxed: bool = False

    def encode(self) -> dict[str, str]:
        """The metadata entry; nothing where names leave nothing open."""
        table = {key: value for key in self.__slots__ if (value := getattr(self, key))}
        return {NOTES: json.dumps(table, sort_keys=True)} if table else {}


def read_notes(metadata: Mapping[str, str]) -> KeyNotes:
    """The notes in a checkpoint's metadata. What is not understood there means nothing."""
    try:
        table = parse_json(metadata.get(NOTES, "{}"))
    except ValueError:
        return KeyNotes()
    if not isinstance(table, dict):
        return KeyNotes()
    return KeyNotes(
        lists=_words(table, "lists"),
        tuples=_words(table, "tuples"),
        integers=_words(table, "integers"),
        dotted={k: v for k, v in _items(table, "dotted") if isinstance(v, int) and v > 0},
        strings=_texts(table, "strings"),
        scalars=_words(table, "scalars"),
        empty=_texts(table, "empty"),
        json=_words(table, "json"),
        keys=_texts(table, "keys"),
        stored=_texts(table, "stored"),
        boxed=_texts(table, "boxed"),
        unboxed=table.get("unboxed") is True,
    )


def _words(table: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = table.get(key)
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _texts(table: Mapping[str, object], key: str) -> dict[str, str]:
    return {k: str(v) for k, v in _items(table, key)}


def _items(table: Mapping[str, object], key: str) -> Iterable[tuple[str, object]]:
    value = table.get(key)
    return value.items() if isinstance(value, dict) else ()


def name_of(path: Path) -> str:
    """The name of the tensor at a key path."""
    return ".".join([str(key) for key in path if not isinstance(key, BoxKey)])


def notes_of(paths: Iterable[Path]) -> KeyNotes:
    """What the names of these key paths leave open."""
    lists: dict[str, None] = {}
    tuples: dict[str, None] = {}
    integers: dict[str, None] = {}
    dotted: dict[str, int] = {}
    for path in paths:
        for depth, key in enumerate(path):
            if isinstance(key, ListIndex):
                (tuples if isinstance(key, TupleIndex) else lists)[name_of(path[:depth])] = None
            elif isinstance(key, int):
                integers[name_of(path[:depth])] = None
            elif dots := key.count("."):
                dotted[name_of(path[: depth + 1])] = dots
    found = tuple(name for name in lists if name not in tuples)
    return KeyNotes(found, tuple(tuples), tuple(integers), dotted)


def path_of(name: str, dotted: Mapping[str, int]) -> tuple[str, ...]:
    """The keys that form a name, all as text."""
    keys: list[str] = []
    segments = name.split(".")
    at = 0
    while at < len(segments):
        keys.append(".".join(segments[at : _end(segments, at, dotted)]))
        at = _end(segments, at, dotted)
    return tuple(keys)


def _end(segments: Sequence[str], at: int, dotted: Mapping[str, int]) -> int:
    """Where the key ends that begins at a segment."""
    for end in range(len(segments), at + 1, -1):
        if dotted.get(".".join(segments[:end])) == end - at - 1:
            return end
    return at + 1


def clash(paths: Mapping[tuple[str, ...], str]) -> tuple[str, str] | None:
    """Of names by their key paths, one and another that lies below it, so that no tree holds both; or None."""
    for path, name in paths.items():
        for depth in range(1, len(path)):
            if path[:depth] in paths:
                return paths[path[:depth]], name
    return None
