"""The leaves of an orbax checkpoint by their dotted names, as plain orbax restores them. Runs in every environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp


def tree(folder: Path | str) -> Any:
    """The checkpoint as nested mappings, written by the older API of orbax or the newer."""
    top, state = Path(folder).resolve(), Path(folder).resolve() / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(state if state.exists() else top)


def leaves(folder: Path | str) -> dict[str, np.ndarray]:
    """Every leaf of the checkpoint, name by name."""
    return {name: np.asarray(leaf) for name, leaf in flat(tree(folder)).items()}


def flat(tree: Any, under: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, their keys joined by dots."""
    if not isinstance(tree, Mapping):
        return {under: tree}
    return {
        name: leaf
        for key, branch in tree.items()
        for name, leaf in flat(branch, f"{under}.{key}" if under else str(key)).items()
    }


def mismatches(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What differs in names and shapes between two flat trees, one line each."""
    return [
        *(f"missing {name}" for name in expected.keys() - found.keys()),
        *(f"unexpected {name}" for name in found.keys() - expected.keys()),
        *(
            f"{name} has shape {found[name].shape}, expected {expected[name].shape}"
            for name in sorted(found.keys() & expected.keys())
            if tuple(found[name].shape) != tuple(expected[name].shape)
        ),
    ]
