"""Read a conversion back before it is published, and compare every byte with the source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from tempfile import TemporaryDirectory

from brainsurgery_jax import api
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.io.files import StagedOutput
from brainsurgery_jax.world import Files


def verify(
    comparison: Mapping[str, object], destination: str, staged: StagedOutput, *, memory: int | str | None
) -> None:
    """Compare the staged output with its source, by a plan on `destination`. Raises PlanError if they differ."""
    assert isinstance(staged, Staged), "a conversion writes to the file system"
    with TemporaryDirectory() as folder:
        place = _named_path(staged, folder, destination)
        written = open_source(place)
        with closing(Files(sources={staged.destination: written})) as world:
            try:
                api.run(api.load(comparison), memory=memory, world=world)
            except PlanError as bad:
                why = "the output is wrong, and was not published"
                raise PlanError([replace(d, message=f"{d.message}; {why}") for d in bad.diagnostics]) from bad


def _named_path(staged: Staged, folder: str, destination: str) -> str:
    """A path to the staged output. A single file gets its final name, whose suffix determines its format."""
    if os.path.isdir(staged.staging):
        return staged.staging
    place = os.path.join(folder, os.path.basename(destination))
    os.symlink(staged.staging, place)
    return place
