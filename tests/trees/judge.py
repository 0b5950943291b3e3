"""orbax as the judge: what it saves of a tree, and whether it restores what we wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as old
import orbax.checkpoint.experimental.v1 as new

VERSIONS = ("v0", "v1")


def save(path: Path, tree: Any, version: str = "v0") -> Path:
    """Let orbax save a tree."""
    if version == "v1":
        new.save(str(path), tree)
        return path
    with old.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def restore(path: Path, version: str, target: Any = None) -> Any:
    """What orbax restores: strictly into a target, or what it finds."""
    if version == "v1":
        return new.load(str(path)) if target is None else new.load(str(path), target)
    with old.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path) if target is None else checkpointer.restore(path, target)


def tree_of(path: Path, *, holders: bool = True) -> Mapping[str, Any]:
    """What orbax says of the leaves of a checkpoint: their keys and of what type they are; with or without who holds
    arrays."""
    folder = path / "state" if (path / "state").exists() else path
    table = json.loads((folder / "_METADATA").read_text())["tree_metadata"]
    found = {}
    for key, entry in table.items():
        kind = entry["value_metadata"]["value_type"]
        array = not holders and kind in ("jax.Array", "np.ndarray", "scalar")
        found[key] = [tuple(k.values()) for k in entry["key_metadata"]], "array" if array else kind
    return found


def assert_same(found: Any, expected: Any) -> None:
    """That two trees are the same: structure, types and values."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (type(one), getattr(one, "dtype", None)) == (type(other), getattr(other, "dtype", None))
        assert np.array_equal(*map(_numbers, (one, other)))


def _numbers(leaf: Any) -> Any:
    key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # pyright: ignore
    return np.asarray(jax.random.key_data(leaf)) if key else np.asarray(leaf)
