"""Reading a conversion back before it is published: every byte is compared with the source, or nothing appears."""

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
from brainsurgery_jax.store.files import StagedOutput
from brainsurgery_jax.world import Files

if TYPE_CHECKING:
    from brainsurgery_jax.conversion import Conversion


def verified(made: Conversion, staged: StagedOutput, *, memory: int | None) -> None:
    """Compare what was written, which is not published yet. Raises PlanError where it differs."""
    assert isinstance(staged, Staged), "a conversion writes to the file system"
    check = verification_of(made.found, made.destination, made.way, made.wishes)
    with TemporaryDirectory() as folder:
        place = _called(staged, folder, made.destination)
        written = open_source(place)
        with closing(Files(sources={staged.destination: written})) as world:
            try:
                api.run(api.load(check), memory=memory, world=world)
            except PlanError as bad:
                hint = "What was written is not what it should be, and was not published."
                raise PlanError([replace(d, hint=f"{d.hint}\n{hint}".lstrip()) for d in bad.diagnostics]) from bad


def _called(staged: Staged, folder: str, destination: str) -> str:
    """A path to what is staged; a single file must have the name that it will have, which tells what is in it."""
    if os.path.isdir(staged.staging):
        return staged.staging
    place = os.path.join(folder, os.path.basename(destination))
    os.symlink(staged.staging, place)
    return place
