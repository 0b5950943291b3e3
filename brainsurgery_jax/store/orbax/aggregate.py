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
from brainsurgery_jax.store.key_paths import Path, name_of
from brainsurgery_jax.store.key_tree import TEXT, KeyTree, OtherLeaf, told
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
    return _join(path, tree, sort_leaves([_leaves_here(_read(listed))]))


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
    paths = told({name_of(keys): keys for keys in leaves})
    tree = OrbaxTree(folder, tuple(places), ("zarr", "zarr3"), ocdbt, False, {}, KeyTree(paths, known=True), by_name)
    return _join(path, tree, sort_leaves([_leaves_here(leaves)]))


def _read(path: str, special: Special = lambda node: None) -> dict[Path, Leaf]:
    (file,) = open_files([path])
    try:
        with os_failures(path, "read the file"):
            return read_leaves(file, special)
    finally:
        file.close()


def place_of(leaf: Leaf) -> str | None:
    """The place of a leaf that is stored elsewhere; None for one in this file."""
    if not isinstance(leaf, str):
        return None
    return next((leaf.removeprefix(mark) for mark in _PLACES if leaf.startswith(mark)), None)


def _leaves_here(leaves: Mapping[Path, Leaf]) -> dict[Path, Leaf]:
    return {path: leaf for path, leaf in leaves.items() if place_of(leaf) is None}


def _says_more(leaf: OtherLeaf, tree: KeyTree, name: str) -> bool:
    """Whether the file has more about a leaf than the metadata: its text, or its existence."""
    return name not in tree.others or leaf.kind == TEXT


def _with_leaves(tree: KeyTree, here: Contents) -> KeyTree:
    """A tree as the metadata describe it, completed by the leaves in the file."""
    others = {name: leaf for name, leaf in here.tree.others.items() if _says_more(leaf, tree, name)}
    return replace(
        tree,
        paths={**here.tree.paths, **tree.paths},
        others={**tree.others, **others},
        types={**here.tree.types, **tree.types},
    )


def _join(path: str, tree: OrbaxTree, here: Contents) -> Source:
    """A tree whose leaves are partly in the file and partly beside it."""
    with ExitStack() as on_failure:
        beside = OrbaxSource(path, tree)
        on_failure.callback(beside.close)
        files = open_files([os.path.join(tree.folder, AGGREGATE)])
        on_failure.callback(files[0].close)
        whole = _with_leaves(beside.header.tree, here)
        inline = source_of(path, files, here)
        names = (*beside.header.tensors, *inline.header.tensors)
        tensors = {**beside.header.tensors, **inline.header.tensors}
        if len(tensors) < len(names):
            twice = next(name for name in inline.header.tensors if name in beside.header.tensors)
            raise StoreError(path, f"is both in {AGGREGATE} and beside it", tensor=twice, remedy=_LOST)
        header = Header(
            path, beside.header.files, tensors, tree.metadata, left_out=here.left_out, unread=here.unread, tree=whole
        )
        on_failure.pop_all()
    return JoinedSource(header, [beside, inline])
