"""Which files of a folder make up the checkpoint in it. An output may take their place, and that of nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import (
    ADAPTER_CONFIG,
    DELTA_MANIFEST,
    LOCKFILE,
    ORBAX_FILES,
    ORBAX_MARKS,
    is_stock_weights,
    is_weights,
    suffix_of,
)
from brainsurgery_jax.store.orbax.folder import MANIFEST, TREE
from brainsurgery_jax.store.sidecars import in_side_folder, side_folders, side_names

_DATA = re.compile(r"d|ocdbt\.process_\w+|array_metadatas")  # folders in which orbax keeps tensors and what it notes
_ZARR = (".zarray", "zarr.json")
_MAX_INDEX = 64 << 20  # bytes


class FolderParts(NamedTuple):
    """A folder as relative paths: the `files` and `folders` of its checkpoint, inner folders first; and what is
    `foreign` to it, folders with a slash at their end. `whole`: there is a checkpoint; `tree`: one of orbax."""

    files: tuple[str, ...]
    folders: tuple[str, ...]
    foreign: tuple[str, ...]
    whole: bool
    tree: bool = False


def parts_of(folder: str, own: Collection[str] = ()) -> FolderParts:
    """What in a folder is a checkpoint's, and what is not. `own` are files that are known to be the checkpoint's.

    Weights count by the names that libraries give them, or if an index names them, or if there are no others: of
    several files of weights that nothing connects each may be a model of its own.
    """
    with os_failures(folder, "list the folder"):
        top = _scan(folder, "")
        trees = _trees(folder, top.folders)
        listed = frozenset(own) | _list_indexed_files(folder, top.files)
        weights = _weights(top.files, listed)
        known = _list_own_files(folder, top.files, trees) | weights
        claims = _Claims(folder, trees, listed, side_folders(folder))
        inner = [claims.of_folder(name) for name in top.folders]
    files = [*(n for n in top.files if n in known), *(p for part in inner for p in part.files)]
    folders = [p for part in inner for p in part.folders]
    foreign = [*(n for n in top.files if n not in known), *top.others, *(p for part in inner for p in part.foreign)]
    whole = bool(weights or trees or LOCKFILE in known)
    return FolderParts(tuple(files), tuple(folders), tuple(sorted(foreign)), whole, bool(trees))


class _Scan(NamedTuple):
    """The entries of a folder: regular files and links to files, folders, and all else (devices, links to folders)."""

    files: list[str]
    folders: list[str]
    others: list[str]


def _scan(folder: str, inner: str) -> _Scan:
    found = _Scan([], [], [])
    with os.scandir(os.path.join(folder, inner)) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            name = os.path.join(inner, entry.name)
            if entry.is_dir(follow_symlinks=False):
                found.folders.append(name)
            elif entry.is_file(follow_symlinks=False) or (entry.is_symlink() and not entry.is_dir()):
                found.files.append(name)
            else:
                found.others.append(name)
    return found


# --- Files at the top -------------------------------------------------------------------------------------------------


def _weights(names: Iterable[str], listed: Collection[str]) -> set[str]:
    """The files of weights that are the checkpoint's."""
    candidates = {name for name in names if is_weights(name) and not name.startswith(".")}
    stock = {name for name in candidates if is_stock_weights(name) or suffix_of(name) == ".distcp" or name in listed}
    return stock or (candidates if len(candidates) == 1 else set())


def _list_own_files(folder: str, names: Collection[str], trees: Collection[str]) -> set[str]:
    """The files at the top that belong to a checkpoint beside its weights."""
    known = {*side_names(folder, names), *(n for n in names if n.endswith(".index.json") and not n.startswith("."))}
    known |= {LOCKFILE, ADAPTER_CONFIG, DELTA_MANIFEST} & set(names)
    if trees or not ORBAX_MARKS.isdisjoint(names):
        known |= ORBAX_FILES & set(names)
    if any(suffix_of(name) == ".distcp" for name in names):
        known |= {".metadata"} & set(names)
    return known


def _list_indexed_files(folder: str, names: Iterable[str]) -> frozenset[str]:
    """The files that the indexes in a folder name."""
    indexes = [Path(folder, name) for name in names if name.endswith(".index.json")]
    return frozenset(path for index in indexes for path in _of_index(index))


def _of_index(index: Path) -> Iterator[str]:
    if not index.is_file() or index.stat().st_size > _MAX_INDEX:
        return
    try:
        table = parse_json(index.read_bytes())
    except ValueError:
        return
    found = table.get("weight_map") if isinstance(table, dict) else None
    yield from {os.path.normpath(v) for v in found.values() if isinstance(v, str)} if isinstance(found, dict) else ()


# --- Folders ----------------------------------------------------------------------------------------------------------


def _trees(folder: str, inner: Iterable[str]) -> frozenset[str]:
    """The trees of an orbax checkpoint: its folders that hold one, `""` for itself."""
    marked = not ORBAX_MARKS.isdisjoint(os.listdir(folder))
    places = ["", *inner] if marked else []
    return frozenset(p for p in places if os.path.isfile(os.path.join(folder, p, TREE)))


class _Claims(NamedTuple):
    """What a checkpoint claims of the sub-folders of its folder: the `trees` of orbax, the files that are `listed`, and
    the folders that side files name (`side`)."""

    folder: str
    trees: Collection[str]
    listed: Collection[str]
    side: Collection[str]

    def of_folder(self, name: str) -> FolderParts:
        """The part of a folder at the top that is the checkpoint's. One that is not at all is not looked into."""
        if not self._names(name):
            return FolderParts((), (), (f"{name}/",), whole=False)
        files: list[str] = []
        folders: list[str] = []
        foreign: list[str] = []
        for found in _walk(self.folder, name):
            foreign += found.others
            folders += found.folders
            for path in found.files:
                (files if self._has(path) else foreign).append(path)
        return FolderParts(tuple(files), tuple(folders), tuple(foreign), whole=False)

    def _names(self, name: str) -> bool:
        if name in self.trees or ("" in self.trees and _holds_data(self.folder, name)):
            return True
        return any(path == name or path.startswith(name + os.sep) for path in (*self.side, *self.listed))

    def _has(self, path: str) -> bool:
        place, name = os.path.split(path)
        return path in self.listed or (place in self.side and in_side_folder(name)) or self._in_tree(path)

    def _in_tree(self, path: str) -> bool:
        """Whether a file lies where orbax keeps what it stores."""
        first, *rest = path.split(os.sep)
        tree, below = (first, rest) if first in self.trees else ("", [first, *rest])
        if tree not in self.trees:
            return False
        if len(below) == 1:
            return below[0] in ORBAX_FILES
        return _holds_data(os.path.join(self.folder, tree), below[0]) and not _is_hidden(below)


def _walk(folder: str, inner: str) -> Iterator[_Scan]:
    """All that lies below a folder, and it itself, inner folders first."""
    found = _scan(folder, inner)
    for below in found.folders:
        yield from _walk(folder, below)
    yield _Scan(found.files, [inner], found.others)


def _is_hidden(path: Iterable[str]) -> bool:
    return any(name.startswith(".") and not name.startswith(".z") for name in path)


def _holds_data(tree: str, name: str) -> bool:
    """Whether a folder of an orbax tree holds tensors: of a key-value store, or an array of zarr."""
    if _DATA.fullmatch(name) is not None:
        return os.path.exists(os.path.join(tree, MANIFEST)) or name == "array_metadatas"
    return any(os.path.isfile(os.path.join(tree, name, mark)) for mark in _ZARR)
