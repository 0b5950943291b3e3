"""The tree of an alias while a step changes it: paths, types and leaves without a tensor follow the names.

Two rules go beyond names. An empty container is matched as if it had the contents of other containers of its name, so
that `(.*)\\.head\\.(.*)` also renames a masked `head`. And a list or tuple that lost an item and has no tensor left is
removed with its empty leaves, which only kept its places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.select import Match, Pattern
from brainsurgery_jax.store.key_paths import ListIndex, Path, name_of
from brainsurgery_jax.store.key_tree import PLAIN, TEXT, KeyTree, LeafType, OtherLeaf, follow, told


def origin_of(expr: Expr) -> tuple[str, str]:
    """The kind of random keys and the narrow storage type of a tensor whose elements were only moved, and whose leaves
    agree; else none."""
    if expr.is_leaf:
        kind = expr.source.header.tree.types.get(expr.name, PLAIN)
        return kind.key, kind.stored
    if not expr.is_call or expr.moves is None:
        return "", ""
    first, *rest = map(origin_of, expr.srcs)
    return first if all(other == first for other in rest) else ("", "")


def type_as(kind: LeafType, expr: Expr, old: Expr | None) -> LeafType:
    """The type of a leaf that a step computed from another one."""
    key, stored = (kind.key, kind.stored) if expr is old else origin_of(expr)
    same = old is not None and old.aval.shape == expr.aval.shape
    return LeafType(kind.holder, key, stored, kind.sharding if same else "")


class TreeDraft:
    """A tree while it is edited, with copies of its mutable parts."""

    __slots__ = ("_base", "_lost", "_sequences", "others", "paths", "types")

    def __init__(self, tree: KeyTree):
        self._base = tree
        self.paths, self.others, self.types = dict(tree.paths), dict(tree.others), dict(tree.types)
        self._lost: dict[str, Path] = {}  # paths of leaves that left a sequence
        self._sequences: dict[str, type[ListIndex]] | None = None

    def put(self, name: str, source: Path | None, kind: LeafType) -> None:
        """Place a leaf under a name. `source`: the path of the leaf that it was computed from."""
        path = self._adopt(tuple(name.split(".")) if source is None else follow(source, name))
        self.paths.update(told({name: path}))
        if kind != PLAIN:
            self.types[name] = kind
        if self._sequences is not None:
            self._sequences |= _sequences(path)

    def put_other(self, name: str, source: Path | None, leaf: OtherLeaf) -> None:
        """Place a leaf that holds no tensor."""
        self.put(name, source, PLAIN)
        self.others[name] = leaf

    def drop(self, name: str) -> None:
        """Remove a leaf."""
        path = self.paths.pop(name, None)
        self.types.pop(name, None)
        self.others.pop(name, None)
        if path is not None and any(isinstance(key, ListIndex) for key in path):
            self._lost[name] = path

    def _adopt(self, path: Path) -> Path:
        """A path whose numbers become indices where the tree has a sequence."""
        if not any(isinstance(key, str) and key.isdecimal() for key in path):
            return path
        if self._sequences is None:
            self._sequences = {name: kind for known in self.paths.values() for name, kind in _sequences(known).items()}
        kinds = (self._sequences.get(name_of(path[:depth])) for depth in range(len(path)))
        return tuple(
            key if kind is None or not (isinstance(key, str) and key.isdecimal()) else kind(key)
            for key, kind in zip(path, kinds, strict=True)
        )

    def freeze(self, names: Collection[str]) -> KeyTree:
        """The tree of tensors with these names. Empty leaves give way to tensors."""
        others = self.others
        if others:
            below = {name[:end] for name in names for end in _dots(name)}
            taken = {*below, *(name[:end] for name in others for end in _dots(name))}
            others = {n: leaf for n, leaf in others.items() if self._stays(n, leaf, names, taken)}
            others = self._without_ghosts(others, below, names)
        gone = self.others.keys() - others.keys()
        paths = {name: path for name, path in self.paths.items() if name not in gone or name in names}
        return replace(self._base, paths=paths, others=others, types=dict(self.types))

    def _stays(self, name: str, leaf: OtherLeaf, names: Collection[str], taken: Collection[str]) -> bool:
        above = any(name[:end] in names for end in _dots(name))
        return not (above or name in names or (leaf.kind != TEXT and name in taken))

    def _without_ghosts(
        self, others: Mapping[str, OtherLeaf], below: Collection[str], names: Collection[str]
    ) -> dict[str, OtherLeaf]:
        """The empty leaves without those in sequences that lost an item and hold no tensor any more."""
        found = dict(others)
        lost = {(name_of(p[:at]), name_of(p[: at + 1])) for p in self._lost.values() for at in _places(p)}
        for sequence, item in sorted(lost, key=lambda pair: -len(pair[0])):
            if sequence in below or (not sequence and names) or item in below or item in names:
                continue
            head = f"{sequence}." if sequence else ""
            rest = [name for name in found if name.startswith(head)]
            if not any(name == item or name.startswith(f"{item}.") for name in rest):
                for name in rest:
                    if found[name].kind != TEXT:
                        del found[name]
        return found


def _dots(name: str) -> Iterator[int]:
    return (at for at, letter in enumerate(name) if letter == ".")


def _places(path: Path) -> Iterator[int]:
    return (at for at, key in enumerate(path) if isinstance(key, ListIndex))


def _sequences(path: Path) -> dict[str, type[ListIndex]]:
    """The sequences on all paths, and the kind of index of each."""
    return {name_of(path[:at]): type(key) for at, key in enumerate(path) if isinstance(key, ListIndex)}


# --- Matching ---------------------------------------------------------------------------------------------------------


def match_others(pattern: Pattern, tree: KeyTree | TreeDraft, names: Iterable[str]) -> list[tuple[str, Match]]:
    """The leaves without a tensor that a pattern matches, each with the match: of its own name or, for an empty
    container, of a name that it would hold if it had the contents of others of its name."""
    own = {name: (name, binding) for name, binding in pattern.matches(tree.others)}
    inner = {n: text for n in tree.others if n not in own and (text := _container_key(n, tree))}
    return [*own.items(), *_match_inner(pattern, inner, names)]


def _container_key(name: str, tree: KeyTree | TreeDraft) -> str:
    """The last key of an empty container, if that is a name; empty for other leaves."""
    path = tree.paths.get(name) or (name.rpartition(".")[2],)
    return "" if tree.others[name].kind == TEXT or isinstance(path[-1], int) else str(path[-1])


def _match_inner(pattern: Pattern, inner: Mapping[str, str], names: Iterable[str]) -> Iterator[tuple[str, Match]]:
    """Containers all of whose would-be contents match, each with the match of the first of them."""
    wanted = set(inner.values())
    contents: dict[str, set[str]] = defaultdict(set)
    for name in names if wanted else ():
        keys = name.split(".")
        for at, key in enumerate(keys[:-1]):
            if key in wanted:
                contents[key].add(".".join(keys[at + 1 :]))
    probes = {f"{name}.{rest}": name for name, key in inner.items() for rest in contents[key]}
    found: dict[str, dict[str, Match]] = defaultdict(dict)
    for probe, binding in pattern.matches(probes):
        found[probes[probe]][probe] = (probe, binding)
    for name, matches in found.items():
        if len(matches) == len(contents[inner[name]]):
            yield name, next(iter(matches.values()))


def target_of(name: str, matched: str, filled: str) -> str | None:
    """The new name of a leaf when `matched`, its name or one below it, becomes `filled`. None if the ends differ: then
    the template does not rename the container."""
    rest = matched[len(name) :]
    return filled.removesuffix(rest) or None if filled.endswith(rest) else None
