"""Checkpoints of Pax, and any folder of zarr arrays: a folder a leaf, which is called like its path from the top, with
dots between folders. There is no list of leaves, so that one that is missing cannot be noticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.key_paths import name_of
from brainsurgery_jax.store.key_tree import NO_TREE
from brainsurgery_jax.store.orbax.folder import OrbaxTree
from brainsurgery_jax.store.orbax.source import OrbaxSource
from brainsurgery_jax.store.orbax.zarr import METADATA
from brainsurgery_jax.store.zarr_leaves.unfinished import refuse_unfinished
from brainsurgery_jax.wording import few

_USUAL = ("state", "items", "params", "default", "train_state")
"""Folders in which trainers keep the tree beside others, such as `metadata`."""


def recognises(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it holds arrays, or one that does under a usual name."""
    inner = [os.path.join(folder, name) for name in names]
    usual = [place for name, place in zip(names, inner, strict=True) if name in _USUAL and os.path.isdir(place)]
    places = (*inner, *(os.path.join(place, name) for place in usual for name in os.listdir(place)))
    return any(map(_is_array, places))


def open_source(path: str) -> Source:
    """The arrays of a folder, in the order of their names."""
    refuse_unfinished(path)
    with os_failures(path, "list the folder"):
        top = _top(path)
        places = {tuple(place.split(os.sep)): place for place in _arrays(top, "")}
    names = [name_of(keys) for keys in places]
    by_name = {name: place.replace(os.sep, "/") for name, place in zip(names, places.values(), strict=True)}
    return OrbaxSource(path, OrbaxTree(top, tuple(places), ("zarr", "zarr3"), False, False, {}, NO_TREE, by_name))


def _top(path: str) -> str:
    """The folder that holds the arrays: the path itself, or the one folder in it that does."""
    names = sorted(os.listdir(path))
    if any(_is_array(os.path.join(path, name)) for name in names):
        return path
    found = [place for name in _USUAL if name in names and _holds_arrays(place := os.path.join(path, name))]
    if len(found) > 1:
        problem = f"holds {len(found)} trees of arrays: {few([os.path.basename(place) for place in found])}"
        raise StoreError(path, problem, remedy=f"Name the one that you mean: {' or '.join(found)}.")
    return found[0] if found else path


def _holds_arrays(folder: str) -> bool:
    return os.path.isdir(folder) and any(_is_array(os.path.join(folder, name)) for name in os.listdir(folder))


def _is_array(folder: str) -> bool:
    """Whether a folder is a zarr array; of version 3 a group has such a file, too."""
    if os.path.isfile(os.path.join(folder, METADATA["zarr"])):
        return True
    path = os.path.join(folder, METADATA["zarr3"])
    if not os.path.isfile(path):
        return False
    with open_regular(path) as file:
        return b'"codecs"' in file.read()


def _arrays(top: str, inner: str) -> Iterator[str]:
    """The paths of all arrays below a folder."""
    for entry in sorted(os.scandir(os.path.join(top, inner)), key=lambda entry: entry.name):
        if not entry.is_dir(follow_symlinks=False):
            continue
        place = os.path.join(inner, entry.name)
        if _is_array(entry.path):
            yield place
        else:
            yield from _arrays(top, place)
