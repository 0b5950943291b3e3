"""Read a conversion back before it is published, and compare every byte with the source."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from brainsurgery_jax import api
from brainsurgery_jax.conversion.plans import verification_of
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.world import Files

if TYPE_CHECKING:
    from brainsurgery_jax.conversion import Conversion


def verify(conversion: Conversion, staged: Staged, *, memory: int | None) -> None:
    """Compare the staged output with its source. Raises PlanError if they differ."""
    check = verification_of(conversion.found, conversion.destination, conversion.route, conversion.request)
    with TemporaryDirectory() as folder:
        place = _named_path(staged, folder, conversion.destination)
        written = open_source(place)
        with closing(Files(sources={staged.destination: written})) as world:
            try:
                api.run(api.load(check), memory=memory, world=world)
            except PlanError as bad:
                hint = "The output is wrong, and was not published."
                raise PlanError([replace(d, hint=f"{d.hint}\n{hint}".lstrip()) for d in bad.diagnostics]) from bad


def _named_path(staged: Staged, folder: str, destination: str) -> str:
    """A path to the staged output. A single file gets its final name, whose suffix determines its format."""
    if os.path.isdir(staged.staging):
        return staged.staging
    place = os.path.join(folder, os.path.basename(destination))
    os.symlink(staged.staging, place)
    return place
