"""Trees of orbax before version 0.5. Their small leaves lie in one file of msgpack, `checkpoint`, beside the others;
and in the first versions that file alone says which leaves there are: one that lies elsewhere is text, its place.

T5X writes such a file, too, with what tensorstore needs to know in place of text; see `zarr_leaves`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Header, Source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.flax.leaves import Leaf, Special, read_leaves
from brainsurgery_jax.store.flax.source import Contents, sort_leaves, source_of
from brainsurgery_jax.store.io.joined import JoinedSource
from brainsurgery_jax.store.io.local import open_files
from brainsurgery_jax.store.key_paths import KeyNotes, Path, name_of, notes_of, read_notes
from brainsurgery_jax.store.orbax.folder import AGGREGATE, MANIFEST, OrbaxTree, find, is_aggregate, read_tree
from brainsurgery_jax.store.orbax.source import OrbaxSource

PLACE = "PLACEHOLDER://"
_PLACES = (PLACE, "AGGREGATED://")
_LOST = "It was not copied as a whole, or its save was cut off: copy or save it again."


def open_orbax(path: str) -> Source:
    """The tensors of a checkpoint of any version."""
    folder = find(path)
    if is_aggregate(folder):
        return open_listed(path, folder)
    tree = read_tree(folder)
    if not tree.aggregated:
        return OrbaxSource(path, tree)
    listed = os.path.join(folder, AGGREGATE)
    if not os.path.isfile(listed):
        raise StoreError(path, f"its {AGGREGATE} is missing, which holds some of the leaves", remedy=_LOST)
    return _joined(path, tree, sort_leaves([_leaves_here(_read(listed))]), read_notes(tree.metadata))


def open_listed(path: str, folder: str, special: Special = lambda node: None, top: Path = ()) -> Source:
    """The tensors of a tree of which the file AGGREGATE in its folder lists the leaves, those below `top` under the
    names that they have there."""
    leaves = {
        keys[len(top) :]: leaf
        for keys, leaf in _read(os.path.join(folder, AGGREGATE), special).items()
        if keys[: len(top)] == top
    }
    places = {keys: found for keys, leaf in leaves.items() if (found := place_of(leaf)) is not None}
    by_name = {name_of(keys): place for keys, place in places.items()}
    ocdbt = os.path.exists(os.path.join(folder, MANIFEST))
    tree = OrbaxTree(folder, tuple(places), ("zarr", "zarr3"), ocdbt, False, {}, by_name)
    return _joined(path, tree, sort_leaves([_leaves_here(leaves)]), notes_of(leaves))


def _read(path: str, special: Special = lambda node: None) -> dict[Path, Leaf]:
    (file,) = open_files([path])
    try:
        with os_failures(path, "read the file"):
            return read_leaves(file, special)
    finally:
        file.close()


def place_of(leaf: Leaf) -> str | None:
    """Where a leaf lies that is stored elsewhere; None for one that is here."""
    if not isinstance(leaf, str):
        return None
    return next((leaf.removeprefix(mark) for mark in _PLACES if leaf.startswith(mark)), None)


def _leaves_here(leaves: Mapping[Path, Leaf]) -> dict[Path, Leaf]:
    return {path: leaf for path, leaf in leaves.items() if place_of(leaf) is None}


def _joined(path: str, tree: OrbaxTree, here: Contents, notes: KeyNotes) -> Source:
    """A tree whose leaves lie partly in the file, partly beside it."""
    scalars = dict.fromkeys((*notes.scalars, *here.notes.scalars))
    notes = replace(
        notes,
        scalars=tuple(scalars),
        strings={**notes.strings, **here.notes.strings},
        empty={**here.notes.empty, **notes.empty},
    )
    with ExitStack() as on_failure:
        beside = OrbaxSource(path, tree)
        on_failure.callback(beside.close)
        files = open_files([os.path.join(tree.folder, AGGREGATE)])
        on_failure.callback(files[0].close)
        inline = source_of(path, files, here, {})
        names = (*beside.header.tensors, *inline.header.tensors)
        tensors = {**beside.header.tensors, **inline.header.tensors}
        if len(tensors) < len(names):
            twice = next(name for name in inline.header.tensors if name in beside.header.tensors)
            raise StoreError(path, f"is both in {AGGREGATE} and beside it", tensor=twice, remedy=_LOST)
        metadata = {**tree.metadata, **notes.encode()}
        header = Header(path, beside.header.files, tensors, metadata, left_out=here.left_out, unread=here.unread)
        on_failure.pop_all()
    return JoinedSource(header, [beside, inline])
