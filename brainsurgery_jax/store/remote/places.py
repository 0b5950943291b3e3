"""What every remote place offers: a listing, and bytes by position. `http.py`, `hub.py` and `filesystem.py` implement
it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.files import Stamp

CONNECTIONS = 16
"""Requests at the same time, of all reads of a checkpoint together."""


class RemoteItem(NamedTuple):
    """A file of a remote place: the address it is read from, how messages call it, and its size and version when it
    was listed. The version is what the place offers: an ETag, a hash, a time."""

    url: str
    shown: str
    stamp: Stamp


class RemotePlace(Protocol):
    """Where the files of a remote checkpoint lie. Any thread may call any method."""

    def list(self) -> Mapping[str, RemoteItem]:
        """The files by their relative names, with `/` between folders. Raises StoreError."""
        ...

    def stamp(self, item: RemoteItem) -> Stamp:
        """The size and the version that a file has now. Raises StoreError, or OSError where asking again may help."""
        ...

    def read_some(self, item: RemoteItem, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view` with the bytes from `offset` on, and returns how many: fewer than wanted if the
        connection broke. Raises StoreError, or OSError where asking again may help."""
        ...

    def close(self) -> None:
        """Closes connections. May be called twice."""
        ...


def missing_package(shown: str, package: str) -> StoreError:
    """The error for a scheme whose package is not installed."""
    extra = "Install it: `pip install 'brainsurgery-jax[remote]'`."
    known = package in ("urllib3", "huggingface_hub", "fsspec")
    return StoreError(shown, f"needs {package}", remedy=extra if known else f"Install it: `pip install {package}`.")


def changed(item: RemoteItem) -> StoreError:
    """The error for a file that is no longer what it was when it was listed."""
    return StoreError(item.shown, "changed while running: it is not the file that was opened at the start",
                      remedy="Somebody replaced it; run again.")  # fmt: skip
