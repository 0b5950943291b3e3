"""Plans that are written to files: whole, and over nothing but another plan."""

from __future__ import annotations

import os
import stat

from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.plan.source import Map, compose, get
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.atomic import write_file
from brainsurgery_jax.store.failures import os_failures

_MOST = 16 << 20
"""Bytes of a file that may be a plan."""


def write_plan(path: str, text: str) -> None:
    """Write a plan, or replace one as a whole; parent folders are created. Raises StoreError, also for a file there
    that is no plan. To a device, as `/dev/stdout`, the text is written as it is."""
    place = os.path.expanduser(path)
    refuse_other_files(place)
    if os.path.exists(place) and not os.path.isfile(place):
        with os_failures(place, "write it"), open(place, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        write_file(place, text.encode())


def refuse_other_files(path: str) -> None:
    """Raises StoreError for a file that is no plan, and for a folder: a plan replaces neither."""
    place = os.path.expanduser(path)
    try:
        mode = os.stat(place).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise StoreError(path, "is a folder", remedy="Name a file for the plan.")
    if stat.S_ISREG(mode) and not _is_plan(place):
        raise StoreError(path, "is no plan, and a plan replaces nothing else", remedy="Name another file.")


def _is_plan(path: str) -> bool:
    """Whether a file holds a plan, or nothing."""
    try:
        root = compose(read_regular(path, _MOST).decode(), path)
    except (OSError, UnicodeDecodeError, PlanError):
        return False
    return root is None or (isinstance(root, Map) and get(root, "transforms") is not None)
