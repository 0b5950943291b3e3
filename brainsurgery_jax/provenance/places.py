"""Where the locks of a run go: into an output that is a folder, beside one that is a file, or where the user says."""

from __future__ import annotations

import os
from collections.abc import Sequence

from brainsurgery_jax.errors import StoreError, worded
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.provenance.lock import is_lock, lock_path
from brainsurgery_jax.store.address import is_remote
from brainsurgery_jax.store.replacing import check_destination
from brainsurgery_jax.store.replacing import resolve as resolve_path

_ENDS = ".json"


def place_of(path: str | None, p: Publication) -> str | None:
    """The path of the lock of an output: the one that was asked for, or that beside a file; None for a folder, which
    has its lock in it."""
    if path is None:
        return None if p.directory else lock_path(resolve_path(p.path), directory=False)
    return path


def check_places(path: str | None, publications: Sequence[Publication]) -> None:
    """Raises StoreError if a lock could not be written where it is to go. `path`: None, or the one that was asked for.
    Only a lock is ever replaced."""
    if path is not None:
        _check_path(path, publications)
    for p in publications:
        if (place := place_of(path, p)) is not None:
            _check_place(place, p.overwrite or (path is None and is_lock(place)))


def _check_place(place: str, may_replace: bool) -> None:
    there = resolve_path(place)  # as it will be written: `new/../x` is not there before, and `x` may be
    if os.path.isfile(there) and not is_lock(there):
        remedy = "Move the file away, or write the lock to another path."
        raise StoreError(place, "is no lock, and a lock replaces nothing else", remedy=remedy)
    check_destination(place, 0, may_replace, directory=False)


def _check_path(path: str, publications: Sequence[Publication]) -> None:
    """Raises StoreError for a path that no lock of these outputs can have."""
    alone = worded(shell="`--lock` without a path", python="`lock=True`")
    if is_remote(path) or not path.endswith(_ENDS):
        problem = "is remote" if is_remote(path) else f"does not end in {_ENDS}, as locks do"
        raise StoreError(path, problem, remedy=f"Write the lock to a file of this machine that ends in {_ENDS}.")
    if len(publications) > 1:
        problem = f"is one lock, and the run writes {len(publications)} checkpoints"
        raise StoreError(path, problem, remedy=f"Write {alone}: each gets one.")
    for p in publications:
        place, output = resolve_path(path), resolve_path(p.path)
        if place == output or place.startswith(output.rstrip(os.sep) + os.sep):
            remedy = f"Write {alone}: a folder has its lock in it."
            raise StoreError(path, f"lies in the output {p.path}, which is replaced as a whole", remedy=remedy)
