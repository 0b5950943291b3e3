"""Reading files of flax: `flax_model.msgpack`, its shards with an index, `checkpoint_N` of `flax.training.checkpoints`,
and the streams of EasyLM. Only the heads of values are read until somebody asks for elements.

Numbers that are no arrays are tensors without axes, as orbax stores them: integers int64, others float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.store.base import Header, Note, Source, TensorInfo, Unread
from brainsurgery_jax.store.completeness import Chosen, choose
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.flax.leaves import Leaf, StoredArray, read_leaves
from brainsurgery_jax.store.flax.wire import Blob
from brainsurgery_jax.store.index_files import place
from brainsurgery_jax.store.io.byte_source import ByteSource
from brainsurgery_jax.store.io.files import File
from brainsurgery_jax.store.io.flat_chunks import FlatChunkedSource
from brainsurgery_jax.store.io.in_memory import MemorySource
from brainsurgery_jax.store.io.joined import JoinedSource
from brainsurgery_jax.store.io.local import open_files
from brainsurgery_jax.store.key_paths import Path, name_of
from brainsurgery_jax.store.key_tree import SCALAR, TEXT, KeyTree, LeafType, OtherLeaf, told

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = frozenset({".msgpack"})
_OTHER_KEYS = "Load it with flax, and save it with other keys."


class Contents(NamedTuple):
    """What the leaves of a checkpoint come to: the arrays with the numbers of their files, numbers, entries that are
    neither, and the tree that all lie in."""

    arrays: Mapping[str, tuple[int, StoredArray]]
    numbers: Mapping[str, np.ndarray]
    unread: Mapping[str, Unread]
    left_out: Mapping[str, str]
    tree: KeyTree


def open_flax(path: str) -> Source:
    """The tensors of a file, of the shards that an index lists, or of a folder with either."""
    chosen = choose(path, SUFFIXES)
    with ExitStack() as on_failure:
        files = open_files(chosen.files)
        for file in files:
            on_failure.callback(file.close)
        found: list[Mapping[Path, Leaf]] = []
        for file in files:
            with os_failures(file.name, "read the file"):
                found.append(read_leaves(file))
        contents = sort_leaves(found)
        contents, notes = _by_index(contents, chosen, len(files))
        source = source_of(path, files, contents, (*chosen.notes, *notes))
        on_failure.pop_all()
    return source


def sort_leaves(files: Sequence[Mapping[Path, Leaf]]) -> Contents:
    """The leaves of several files, by name and kind."""
    arrays: dict[str, tuple[int, StoredArray]] = {}
    numbers: dict[str, np.ndarray] = {}
    unread: dict[str, Unread] = {}
    left_out: dict[str, str] = {}
    others: dict[str, OtherLeaf] = {}
    paths: dict[str, Path] = {}
    for number, entries in enumerate(files):
        for path, leaf in entries.items():
            name = name_of(path)
            if name in paths:
                unread[name] = Unread(
                    "two leaves have this name, in two files or once keys are joined by dots", _OTHER_KEYS
                )
                continue
            paths[name] = path
            match leaf:
                case StoredArray():
                    arrays[name] = (number, leaf)
                case Unread():
                    unread[name] = leaf
                case Blob():
                    left_out[name] = "text" if leaf.text else "bytes"
                case str():
                    others[name] = OtherLeaf(TEXT, leaf)
                case None | dict() | list():
                    others[name] = OtherLeaf("None" if leaf is None else "Dict" if isinstance(leaf, dict) else "List")
                case _:
                    numbers[name] = array_of(leaf)
    types = {name: LeafType(SCALAR) for name in numbers}
    tree = KeyTree(told(paths), others, types, known=True)
    return Contents(arrays, numbers, unread, left_out, tree)


def array_of(number: bool | int | float | complex) -> np.ndarray:
    """A number as an array without axes."""
    import numpy as np

    if isinstance(number, int) and not isinstance(number, bool) and number >= 1 << 63:
        return np.array(number, np.uint64)
    return np.array(number)


def source_of(path: str, files: Sequence[File], contents: Contents, notes: tuple[Note, ...] = ()) -> Source:
    """A source of these contents of files."""
    pieces: dict[str, list[str]] = {}
    infos: dict[str, TensorInfo] = {}
    inner: dict[str, TensorInfo] = {}
    for name, (number, (aval, runs)) in contents.arrays.items():
        infos[name] = TensorInfo(aval, number, runs[0][0])
        if len(runs) == 1:
            inner[name] = infos[name]
            continue
        pieces[name] = [f"{name}\0{at}" for at in range(len(runs))]
        for key, (start, size) in zip(pieces[name], runs, strict=True):
            inner[key] = TensorInfo(Aval((size,), aval.dtype), number, start)
    names = tuple(file.name for file in files)
    arrays = FlatChunkedSource(
        Header(path, names, infos, {}), ByteSource(Header(path, names, inner, {}), files), pieces
    )
    avals = {name: Aval((), BY_NAME[array.dtype.name]) for name, array in contents.numbers.items()}
    numbers = MemorySource(path, contents.numbers, avals, {})
    tensors = {**infos, **numbers.header.tensors}
    header = Header(
        path, names, tensors, {}, left_out=contents.left_out, unread=contents.unread, notes=notes, tree=contents.tree
    )
    return JoinedSource(header, [arrays, numbers])


def _by_index(contents: Contents, chosen: Chosen, files: int) -> tuple[Contents, tuple[Note, ...]]:
    """The contents as an index lists them, if there is one; without one, each name in one file."""
    if chosen.listed is None:
        return contents, ()
    infos = [
        {name: TensorInfo(stored.aval, at, 0) for name, (at, stored) in contents.arrays.items() if at == number}
        for number in range(files)
    ]
    dotted = {name.replace("/", "."): path for name, path in chosen.listed.weight_map.items()}
    kept, notes = place(chosen.listed._replace(weight_map=dotted), chosen.files, infos)
    names = {name for tensors in kept for name in tensors}
    arrays = {name: found for name, found in contents.arrays.items() if name in names}
    return contents._replace(arrays=arrays), notes
