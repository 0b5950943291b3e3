"""Checkpoints of T5X: a file of msgpack, `checkpoint`, in which large leaves stand as what tensorstore needs to open
them, and a zarr array for each of these, in a folder beside it. Format:
https://github.com/google-research/t5x/blob/main/docs/usage/checkpoints.md
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import AGGREGATE
from brainsurgery_jax.store.orbax.aggregate import PLACE, open_listed
from brainsurgery_jax.store.zarr_leaves.unfinished import refuse_unfinished

_TOP = "optimizer"
"""What all leaves lie under."""

_BEGINNINGS = (b"\x82\xa9optimizer", b"\x82\xa7version")
"""How the file begins: the two keys at the top, in the order of either version of flax."""


def recognises(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder with these names in it is such a checkpoint."""
    path = os.path.join(folder, AGGREGATE)
    with os_failures(path, "read the file"):
        if not os.path.isfile(path):
            return False
        with open_regular(path) as file:
            return file.read(len(_BEGINNINGS[0])).startswith(_BEGINNINGS)


def open_source(path: str) -> Source:
    """The leaves of a train state: `target` are the parameters, `state` is what the optimizer keeps."""
    refuse_unfinished(path)
    return open_listed(path, path, _place_of_spec, (_TOP,))


def _place_of_spec(node: Mapping[Any, Any]) -> str | None:
    """Where a leaf lies for which the arguments of tensorstore stand here, from the folder of the checkpoint on."""
    while isinstance(node.get("base"), Mapping):  # a cast of what is stored
        node = node["base"]
    store = node.get("kvstore")
    path = store.get("path") if isinstance(store, Mapping) else store
    if not isinstance(node.get("driver"), str) or not isinstance(path, str):
        return None
    *_, name = path.rstrip("/").split("/")
    return f"{PLACE}{name}"
