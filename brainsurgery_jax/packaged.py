"""Folders of data files that are installed with the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def find_packaged_folder(name: str, beside: str) -> Traversable:
    """The folder that is installed under a name; in a source tree that is not installed, `beside` the package."""
    if find_spec(f"brainsurgery_jax.{name}") is None:
        return Path(__file__).parents[1] / beside
    from importlib.resources import files  # loads a dozen modules, which most plans do without

    return files(f"brainsurgery_jax.{name}")
