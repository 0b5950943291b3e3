"""Outputs that would lie beside the weights of a model, whose folder is then no longer read as one checkpoint."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator

from brainsurgery_jax.errors import Diagnostic
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.lower.state import World
from brainsurgery_jax.store.completeness import is_one


def note_neighbours(made: Iterable[Publication], origins: Collection[str], world: World) -> Iterator[Diagnostic]:
    """Notes on outputs that make several checkpoints of the folder of a model that was read by the name of its file.
    Where the folder itself was named, they are refused."""
    folders = {folder for origin in origins if (folder := _model_folder(origin, world))}
    for p in made:
        folder, name = os.path.split(world.key(p.path))
        if p.directory or folder not in folders or not is_one(folder, p.format.suffixes):
            continue
        if not is_one(folder, p.format.suffixes, name):
            message = f"output: '{p.path}' lies beside a model's weights, and its folder then holds several checkpoints"
            hint = f"Write to a folder of its own, or read each by its file from then on: {p.path}."
            yield Diagnostic("output-beside", message, p.span, hint, "note")


def _model_folder(origin: str, world: World) -> str | None:
    """The folder of a model that is named by one of its files."""
    found = world.side_files(origin)
    folder = None if found is None else world.key(str(found.folder))
    return folder if folder == os.path.dirname(world.key(origin)) else None
