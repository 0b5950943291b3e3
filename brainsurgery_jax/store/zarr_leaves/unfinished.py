"""Saves that did not come to their end, by the names that their folders have until then."""

from __future__ import annotations

import os
import re

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.orbax.folder import UNDONE

_UNFINISHED = re.compile("|".join([r"\.tmp[-_].+", r"^tmp_?checkpoint", r"\.tmp$", *map(re.escape, UNDONE)]))
_REMEDY = "Name an earlier step; or, if the save did end, rename the folder to what comes before `.tmp`."


def refuse_unfinished(folder: str) -> None:
    """Raises StoreError for a folder that has the name of a save under way."""
    name = os.path.basename(os.path.abspath(folder))
    if _UNFINISHED.search(name):
        raise StoreError(folder, "is an unfinished save, by its name", remedy=_REMEDY)
