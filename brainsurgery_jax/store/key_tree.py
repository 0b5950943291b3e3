"""The tree of a checkpoint: the keys on the path to each tensor, the type of each leaf, and leaves without a tensor.

A tensor has a name, and a tree places it at a path of keys: `opt_state.0.mu` may be in a tuple. Empty containers and
None are leaves too: orbax stores them, and a strict restore looks for them. Everything is immutable and indexed by
name, so that it can follow the names of a plan. `follow` returns the new path of a leaf.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from brainsurgery_jax.store.key_paths import (
    BoxKey,
    KeyNotes,
    ListIndex,
    Path,
    TupleIndex,
    notes_of,
    path_of,
    read_notes,
)

JAX, NUMPY, SCALAR = "jax.Array", "np.ndarray", "scalar"
"""What holds a leaf, in the words of orbax."""

TEXT = "string"
"""The kind of a leaf that is text."""

EMPTY: Mapping[str, object] = {"None": None, "Dict": {}, "List": [], "Tuple": (), "NamedTuple": None}
"""The kinds of leaves that hold nothing, in the words of orbax; of a named tuple it keeps nothing but that."""

_SPELLED = {"None": "None", "Dict": "{}", "List": "[]", "Tuple": "()", "NamedTuple": "()", TEXT: "text"}
_KEYS = {"threefry2x32": "fry", "rbg": "rbg", "unsafe_rbg": "urbg"}


class LeafType(NamedTuple):
    """The type of a leaf, beyond its shape and dtype. Empty if it is unknown.

    - `holder`: JAX, NUMPY or SCALAR (a Python number)
    - `key`: of a key of random numbers its kind, such as `threefry2x32`; its numbers are the tensor
    - `stored`: the narrow type, such as `int4`, that it is stored in; the tensor has a wider one
    - `sharding`: how JAX laid it out, as orbax spells it
    """

    holder: str = ""
    key: str = ""
    stored: str = ""
    sharding: str = ""

    @property
    def word(self) -> str:
        """What to call it, where it differs from the dtype; empty where it does not."""
        if self.key:
            return f"key<{_KEYS.get(self.key, self.key)}>"
        return self.stored or ("number" if self.holder == SCALAR else "")

    @property
    def words(self) -> str:
        """What a leaf of this type is, in words."""
        holder = {JAX: "a jax.Array", NUMPY: "a numpy array", SCALAR: "a Python number"}.get(self.holder, "an array")
        narrow = f"{self.stored} in " if self.stored else ""
        return self.word if self.key else f"{narrow}{holder}"

    def is_unlike(self, other: LeafType) -> bool:
        """Whether two leaves are known to be of different types. How they are laid out does not count."""
        holders = self.holder and other.holder and self.holder != other.holder
        return bool(holders) or (self.key, self.stored) != (other.key, other.stored)


PLAIN = LeafType()


class OtherLeaf(NamedTuple):
    """A leaf that holds no tensor: its kind, and its text if it is one."""

    kind: str
    text: str = ""

    @property
    def word(self) -> str:
        """How it is shown. The text of a leaf may be private."""
        return _SPELLED.get(self.kind, self.kind)

    @property
    def value(self) -> object:
        """What it is in Python."""
        return self.text if self.kind == TEXT else EMPTY.get(self.kind)


@dataclass(frozen=True, slots=True)
class KeyTree:
    """What a tree holds beside its tensors; everything is indexed by name.

    - `paths`: key paths of tensors and other leaves whose name does not spell the path
    - `others`: the leaves without a tensor
    - `types`: the types of tensors, as far as they are known
    - `json`: keys of metadata whose values are JSON, not text
    - `known`: whether the checkpoint describes its tree completely, so that what is missing here does not exist
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    others: Mapping[str, OtherLeaf] = field(default_factory=dict)
    types: Mapping[str, LeafType] = field(default_factory=dict)
    json: tuple[str, ...] = ()
    known: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether names describe the tree completely."""
        return not (self.paths or self.others or self.types)

    @property
    def texts(self) -> tuple[str, ...]:
        """The names of leaves that are text."""
        return tuple(name for name, leaf in self.others.items() if leaf.kind == TEXT)

    @property
    def empty(self) -> tuple[str, ...]:
        """The names of leaves that hold nothing."""
        return tuple(name for name, leaf in self.others.items() if leaf.kind != TEXT)

    def path(self, name: str) -> Path:
        """The key path of a leaf."""
        return self.paths.get(name) or tuple(name.split("."))

    def choose(self, tensors: Mapping[str, str], others: Mapping[str, str]) -> KeyTree:
        """The tree of some leaves under new names: by these, their names here."""
        both = {**tensors, **others}
        paths = {new: follow(self.paths[old], new) for new, old in both.items() if old in self.paths}
        types = {new: self.types[old] for new, old in tensors.items() if old in self.types}
        return replace(
            self, paths=told(paths), others={new: self.others[old] for new, old in others.items()}, types=types
        )

    def notes(self, names: Iterable[str]) -> KeyNotes:
        """What formats without trees keep of the tree of these tensors. Texts may be private and are not kept."""
        names = list(names)
        empty = {name: leaf.kind for name, leaf in self.others.items() if leaf.kind != TEXT}
        types = [(name, self.types[name]) for name in names if name in self.types]
        return replace(
            notes_of(self.paths[name] for name in (*names, *empty) if name in self.paths),
            scalars=tuple(name for name, kind in types if kind.holder == SCALAR),
            empty=empty,
            json=self.json,
            keys={name: kind.key for name, kind in types if kind.key},
            stored={name: kind.stored for name, kind in types if kind.stored},
            boxed=self._boxes(names),
        )

    def _boxes(self, names: Sequence[str]) -> dict[str, str]:
        found = {n: str(p[-1]) for n in names if (p := self.paths.get(n)) and isinstance(p[-1], BoxKey)}
        alike = set(found.values())
        return {"": alike.pop()} if len(found) == len(names) > 1 and len(alike) == 1 else found


NO_TREE = KeyTree()


def tree_of_notes(notes: KeyNotes, names: Iterable[str]) -> KeyTree:
    """The tree of tensors with these names, of which a checkpoint has these notes."""
    if notes == KeyNotes():
        return NO_TREE
    others = {n: OtherLeaf(kind) for n, kind in notes.empty.items()}
    others |= {n: OtherLeaf(TEXT, text) for n, text in notes.strings.items()}
    names = [*names]
    types = {n: LeafType(SCALAR if n in notes.scalars else "", notes.keys.get(n, ""), notes.stored.get(n, ""))
             for n in (*notes.scalars, *notes.keys, *notes.stored)}  # fmt: skip
    paths = {n: _path(n, notes) for n in others}
    for name in names:
        box = notes.boxed.get(name) or notes.boxed.get("")
        paths[name] = (*_path(name, notes), *((BoxKey(box),) if box else ()))
    return KeyTree(told(paths), others, {n: types[n] for n in names if n in types}, notes.json, known=True)


def tree_in(metadata: Mapping[str, str], names: Iterable[str]) -> KeyTree:
    """The tree that the notes in a checkpoint's metadata describe."""
    return tree_of_notes(read_notes(metadata), names)


def _path(name: str, notes: KeyNotes) -> Path:
    found: list[str | int] = []
    at = ""
    for key in path_of(name, notes.dotted):
        number = key.removeprefix("-")
        if key.isdecimal() and at in notes.tuples:
            found.append(TupleIndex(key))
        elif key.isdecimal() and at in notes.lists:
            found.append(ListIndex(key))
        elif number.isdecimal() and at in notes.integers:
            found.append(int(key))
        else:
            found.append(key)
        at = f"{at}.{key}" if at else key
    return tuple(found)


def told(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Those of the paths that names do not spell."""
    return {name: path for name, path in paths.items() if path != tuple(name.split("."))}


# --- What becomes of a path -------------------------------------------------------------------------------------------


def follow(path: Path, name: str) -> Path:
    """The path of a leaf under a new name. Keys at the end and at the beginning that stay as they are keep their kind;
    numbers in between do so one by one, if there are as many of them as before."""
    keys = [key for key in path if not isinstance(key, BoxKey)]
    end: list[str | int] = []
    while keys and (rest := _before(name, str(keys[-1]))) is not None:
        end.insert(0, keys.pop())
        name = rest
    start: list[str | int] = []
    while keys and name.startswith(f"{keys[0]}."):
        start.append(keys.pop(0))
        name = name[len(str(start[-1])) + 1 :]
    between = _renumber(keys, name.split(".")) if name else []
    return (*start, *between, *end, *(key for key in path[-1:] if isinstance(key, BoxKey)))


def _before(name: str, key: str) -> str | None:
    """A name without its last key; None if it ends in another one."""
    if name == key:
        return ""
    return name[: -len(key) - 1] if name.endswith(f".{key}") else None


def _renumber(keys: Sequence[str | int], segments: Sequence[str]) -> list[str | int]:
    """Segments of a name as keys: numbers are of the kinds that numbers among the old keys are of, in their order."""
    kinds = [type(key) for key in keys if str(key).isdecimal()]
    places = [at for at, text in enumerate(segments) if text.isdecimal()]
    found: list[str | int] = list(segments)
    if len(kinds) == len(places):
        for at, kind in zip(places, kinds, strict=True):
            found[at] = kind(segments[at])
    return found


def holds_type(kind: LeafType, shape: Sequence[int], dtype: str) -> LeafType:
    """The type of a leaf whose tensor has this shape and dtype by now: without what cannot be so any more."""
    if kind.holder == SCALAR and len(shape):
        kind = kind._replace(holder=NUMPY)
    if kind.key and (dtype != "uint32" or not len(shape)):
        kind = kind._replace(key="")
    return kind


# --- Trees ------------------------------------------------------------------------------------------------------------


def nest(leaves: Iterable[tuple[Path, Any]]) -> Any:
    """The tree of these leaves. A sequence whose indices are not 0, 1, 2, ... is a dict."""
    root = _Node()
    for path, value in leaves:
        node = root
        for key in path[:-1]:
            _, node = node.setdefault(str(key), (key, _Node()))
        node[str(path[-1])] = path[-1], value
    return _convert_node(root)


class _Node(dict[str, tuple[str | int, Any]]):
    """A container that is being filled: by the text of a key, the key and what lies there."""


def _convert_node(node: object) -> object:
    if not isinstance(node, _Node):
        return node
    keys = [key for key, _ in node.values()]
    inner = {text: _convert_node(value) for text, (_, value) in node.items()}
    if keys and all(isinstance(key, ListIndex) for key in keys) and set(inner) == {str(n) for n in range(len(inner))}:
        kind = tuple if all(isinstance(key, TupleIndex) for key in keys) else list
        return kind(inner[str(n)] for n in range(len(inner)))
    if all(isinstance(key, int) and not isinstance(key, ListIndex) for key in keys):
        return {int(text): value for text, value in inner.items()}
    return inner


# --- Differences ------------------------------------------------------------------------------------------------------


def type_gap(left: KeyTree, right: KeyTree, name: str, other: str) -> tuple[str, str] | None:
    """How the types of two tensors differ, in words; None if they do not, or nobody knows."""
    ours, theirs = left.types.get(name, PLAIN), right.types.get(other, PLAIN)
    if not (left.known and right.known and ours.is_unlike(theirs)):
        return None
    return ours.words, theirs.words


def tree_gaps(left: KeyTree, right: KeyTree, shared: Iterable[str]) -> dict[str, tuple[str, str]]:
    """How two trees differ beside the values of tensors, by name, each side in words: leaves that hold no tensor, and
    of the `shared` tensors their types and the containers on the way. Empty if either tree is unknown."""
    gaps: dict[str, tuple[str, str]] = {}
    if not (left.known and right.known):
        return gaps
    for name in dict.fromkeys((*left.others, *right.others)):
        ours, theirs = left.others.get(name), right.others.get(name)
        if ours != theirs:
            gaps[name] = ("" if ours is None else ours.word, "" if theirs is None else theirs.word)
    if left.types == right.types and left.paths == right.paths:
        return gaps
    for name in shared:
        if (gap := type_gap(left, right, name, name)) is not None:
            gaps[name] = gap
        elif _key_kinds(left.path(name)) != _key_kinds(right.path(name)):
            gaps[name] = (show_path(left.path(name)), show_path(right.path(name)))
    return gaps


def _key_kinds(path: Path) -> list[tuple[bool, str]]:
    """A path as orbax represents it: a tuple is a list, and all keys of a dict are text."""
    return [(isinstance(key, ListIndex), str(key)) for key in path]


def show_path(path: Path) -> str:
    """A key path as Python spells it."""
    return "".join(f"[{key}]" if isinstance(key, int) else f"[{str(key)!r}]" for key in path)
