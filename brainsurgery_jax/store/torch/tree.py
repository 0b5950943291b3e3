"""The object that a torch file holds as a tree of entries: tensors and other values by their key paths.

Dicts, lists and tuples are containers, and so are objects that behave like them. All else is a leaf: a tensor, plain
data, or an object of a class that is not known here. Tensors inside of such an object are not reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Unread
from brainsurgery_jax.store.key_paths import ListIndex, Path, Spelled
from brainsurgery_jax.store.safetensors.header import AGAIN
from brainsurgery_jax.store.torch.pickle_machine import Name, Object
from brainsurgery_jax.store.torch.pickles import ORDERED_DICT, Storage, Tensor

DEEPEST, MOST = 100, 1_000_000
"""Levels and entries of a tree; what is deeper or more is no checkpoint, but a trap for its readers."""

MOST_LETTERS = 64_000_000
"""Characters of all names together."""

SMALL, SHARED = 10_000, 16
"""Entries that any file may have; and how often each may be reached on another way."""

MOST_VALUES = 100_000
"""Entries, after which a container without tensors is one value."""

_SETS = (Name("builtins", "set"), Name("builtins", "frozenset"))


class Leaf(NamedTuple):
    """An entry of a tree, with its key path."""

    path: Path
    value: object


@dataclass(slots=True)
class TorchTree:
    """The entries of a root in their order, and by key path what kind of container each is."""

    leaves: list[Leaf] = field(default_factory=list)
    kinds: dict[Path, str] = field(default_factory=dict)
    hidden: dict[Path, str] = field(default_factory=dict)
    """Objects with tensors inside of them, and of which class they are."""


def entries_of(node: Any) -> Iterable[tuple[Any, Any]] | None:
    """The keys and values of a container; None for a leaf."""
    if isinstance(node, Object):
        if node.entries:
            return node.entries.items()
        if node.items is None or node.kind in _SETS:
            return None
        return [(ListIndex(at), item) for at, item in enumerate(node.items)]
    if type(node) is dict:
        return node.items() or None
    if type(node) in (list, tuple) and any(map(_is_no_atom, node)):
        return [(ListIndex(at), item) for at, item in enumerate(node)]
    return None


def _is_no_atom(value: object) -> bool:
    return type(value) in (list, tuple, dict, Object, Tensor, Unread)


def grow(root: object, path: str) -> TorchTree:
    """The tree of a root, which is a container. Raises StoreError for one that is too deep or too large."""
    return _Gardener(path, _survey(root)).grow(root)


class _Gardener:
    """Walks a root. What shares containers has more entries than the file spells: without tensors each container is
    entered once, and there is a limit to those with some."""

    def __init__(self, file: str, survey: _Survey):
        self._file, self._survey = file, survey
        self._most = min(MOST, SMALL + SHARED * survey.size)
        self._entered: set[int] = set()
        self._tree, self._seen, self._named = TorchTree(), 0, 0

    def grow(self, root: object) -> TorchTree:
        self._enter((), 0, root, entries_of(root) or ())
        return self._tree

    def _enter(self, path: Path, length: int, node: Any, entries: Iterable[tuple[Any, Any]]) -> None:
        """Walk the entries of a container. `length` is that of its name."""
        self._tree.kinds[path] = _kind(node)
        for key, value in entries:
            at = key if _is_plain(key) else Spelled(key)
            self._walk((*path, at), length + len(str(at)) + 1, value)

    def _walk(self, path: Path, length: int, node: object) -> None:
        self._seen += 1
        self._named += length
        if self._seen > self._most or self._named > MOST_LETTERS:
            problem = f"holds more than {self._most:,} entries, or {MOST_LETTERS:,} characters in their names"
            raise StoreError(self._file, problem, remedy=AGAIN)
        holds = id(node) in self._survey.holders
        if holds and len(path) > DEEPEST:
            raise StoreError(self._file, f"is nested deeper than {DEEPEST} levels", remedy=AGAIN)
        first = id(node) not in self._entered and self._seen + _size(node) < MOST_VALUES and len(path) < DEEPEST
        entries = entries_of(node) if holds or first else None
        if not holds and not all(_is_plain(key) for key, _ in entries or ()):  # it could not be written back
            entries = None
        if type(node) in (list, tuple, dict, Object):
            self._entered.add(id(node))
        if entries is not None:
            self._enter(path, length, node, entries)
            return
        self._tree.leaves.append(Leaf(path, node))
        if isinstance(node, Object) and id(node) in self._survey.hiding:
            self._tree.hidden[path] = str(node)


def _is_plain(key: Any) -> bool:
    return type(key) in (str, int, ListIndex)


def _size(node: object) -> int:
    """How many entries a container has, at least."""
    entries = node.entries or node.items if isinstance(node, Object) else node
    return len(entries) if isinstance(entries, list | tuple | dict) else 0


def _kind(node: object) -> str:
    if isinstance(node, Object):
        return "OrderedDict" if node.kind == ORDERED_DICT else "dict" if node.entries is not None else "list"
    return type(node).__name__


class _Survey(NamedTuple):
    """By id, the containers that hold tensors, and the objects that hide some; and how many entries there are, each
    counted once."""

    holders: set[int]
    hiding: set[int]
    size: int


def _survey(root: object) -> _Survey:
    """What a root holds. Linear in what there is, whatever shares or holds itself."""
    holders: set[int] = set()
    hiding: set[int] = set()
    size = 0
    for node in _from_below(root):
        for value, inside in _inner(node):
            size += 1
            if isinstance(value, Tensor | Unread) or id(value) in holders:
                (hiding if inside else holders).add(id(node))
            elif isinstance(value, Storage) or id(value) in hiding:
                hiding.add(id(node))
    return _Survey(holders, hiding, size)


def _from_below(root: object) -> list[object]:
    """Every container and object below a root, each once, after those inside of it."""
    found: list[object] = []
    seen = {id(root)}
    stack = [(root, iter(_inner(root)))]
    while stack:
        node, inner = stack[-1]
        for value, _ in inner:
            if type(value) in (list, tuple, dict, Object) and id(value) not in seen:
                seen.add(id(value))
                stack.append((value, iter(_inner(value))))
                break
        else:
            found.append(node)
            stack.pop()
    return found


def _inner(node: object) -> list[tuple[object, bool]]:
    """What a container or an object holds, and whether it is inside of an object, where no entry leads."""
    entries = [(value, False) for _, value in entries_of(node) or ()]
    if not isinstance(node, Object):
        return entries
    return [*entries, *((value, True) for value in (node.given, node.state))]
