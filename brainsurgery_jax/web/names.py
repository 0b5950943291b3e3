"""The names of a checkpoint as a tree that is shown level by level, equal neighbours in a list as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.nametree import group_by_module, module_of, pattern_of


class Branch(NamedTuple):
    """A node: its label, the pattern of the names below it, what it holds, and whether it is a tensor itself.

    `key` is the dotted prefix of the first of `copies` neighbours in a list that hold the same.
    """

    key: str
    label: str
    pattern: str
    tensors: int
    nbytes: int
    copies: int = 1
    aval: Aval | None = None
    has_children: bool = False


class _Level:
    """A part of the tree: its own tensor, if it is one, and what is below."""

    __slots__ = ("aval", "below", "digest", "nbytes", "tensors")

    def __init__(self) -> None:
        self.below: dict[str, _Level] = {}
        self.aval: Aval | None = None
        self.tensors = self.nbytes = 0
        self.digest: object = None

    def total(self) -> object:
        """Count what is below; what tells this level from others."""
        below = tuple((name, level.total()) for name, level in self.below.items())
        self.tensors = sum(level.tensors for level in self.below.values()) + (self.aval is not None)
        own = 0 if self.aval is None else self.aval.nbytes
        self.nbytes = sum(level.nbytes for level in self.below.values()) + own
        self.digest = hash((self.aval, below))
        return self.digest


class BranchedNames:
    """The tree of names along their dots."""

    def __init__(self, avals: Mapping[str, Aval]):
        self._top = _Level()
        for name, aval in avals.items():
            level = self._top
            for part in name.split("."):
                if (found := level.below.get(part)) is None:
                    found = level.below[part] = _Level()
                level = found
            level.aval = aval
        self._top.total()

    def children(self, key: str = "", pattern: str = "") -> list[Branch]:
        """The nodes below a prefix. `pattern` is that of the prefix, if it stands for several."""
        level = self._top
        for part in key.split(".") if key else ():
            level = level.below[part]
        found: list[Branch] = []
        digests: list[object] = []
        for name, one in level.below.items():
            branch = _branch(key, pattern or re.escape(key), name, one)
            joins = bool(found) and name.isdecimal() and found[-1].key.rpartition(".")[2].isdecimal()
            if joins and digests[-1] == one.digest and one.below:
                found[-1] = _fold(found[-1], name, one, pattern or re.escape(key))
                continue
            found.append(branch)
            digests.append(one.digest)
        return found


def write_pattern(names: Sequence[str], known: Iterable[str]) -> str:
    """A regular expression that matches these names, and no other of those that are known. Names of one module that
    are all there become one pattern with `\\d+` for its numbers."""
    wanted = set(names)
    modules = group_by_module(known)
    parts: list[str] = []
    for module in dict.fromkeys(map(module_of, names)):
        members = modules.get(module, [])
        if len(members) > 1 and wanted.issuperset(members):
            parts.append(pattern_of(module))
        else:
            parts += [re.escape(name) for name in members if name in wanted]
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _branch(key: str, pattern: str, name: str, level: _Level) -> Branch:
    path = f"{key}.{name}" if key else name
    own = rf"{pattern}\.{re.escape(name)}" if pattern else re.escape(name)
    return Branch(path, name, own, level.tensors, level.nbytes, 1, level.aval, bool(level.below))


def _fold(branch: Branch, name: str, level: _Level, pattern: str) -> Branch:
    first = branch.key.rpartition(".")[2]
    return branch._replace(
        label=f"[{first}-{name}]", pattern=rf"{pattern}\.\d+" if pattern else r"\d+", copies=branch.copies + 1,
        tensors=branch.tensors + level.tensors, nbytes=branch.nbytes + level.nbytes,
    )  # fmt: skip
