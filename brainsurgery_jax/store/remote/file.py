"""A remote file behind the protocol of files: long reads are cut into parts that are fetched at the same time, and a
part whose connection breaks goes on where it stopped."""

from __future__ import annotations

import time
from concurrent.futures import Executor

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.files import Stamp, truncation_error
from brainsurgery_jax.store.remote.places import RemoteItem, RemotePlace, changed

PART = 2 << 20
"""Bytes of a request: small enough that a block of a tensor comes over two connections at least."""

PATIENCE = 5
"""How often a read that yields nothing is tried before it fails."""

FIRST_WAIT = 0.25
"""Seconds before the second try; each later one waits twice as long."""


class RemoteFile:
    """A file of a remote place, open for reading; see `files.File`. `executor` runs the requests of long reads."""

    def __init__(self, place: RemotePlace, item: RemoteItem, executor: Executor):
        self._place, self._item, self._executor = place, item, executor

    @property
    def name(self) -> str:
        """What errors call it: its address without secrets."""
        return self._item.shown

    @property
    def size(self) -> int:
        """Its bytes, when it was listed."""
        return self._item.stamp.size

    @property
    def stamp(self) -> Stamp:
        """What it was when it was listed."""
        return self._item.stamp

    def read_into(self, view: memoryview, offset: int, *, tensor: str | None = None) -> None:
        """Fills `view` with the bytes from `offset` on."""
        if (missing := offset + len(view) - self.size) > 0:
            raise truncation_error(self.name, self.size, missing, tensor=tensor)
        starts = range(0, len(view), PART)
        if len(starts) <= 1:
            self._read_part(view, offset, tensor)
            return
        parts = [self._executor.submit(self._read_part, view[at : at + PART], offset + at, tensor) for at in starts]
        try:
            for part in parts:
                part.result()
        finally:
            for part in parts:  # none may write into `view` once this has returned
                part.cancel()
            for part in parts:
                if not part.cancelled():
                    part.exception()

    def _read_part(self, view: memoryview, offset: int, tensor: str | None) -> None:
        done, failures = 0, 0
        while done < len(view):
            try:
                count, why = self._place.read_some(self._item, view[done:], offset + done), "it sent no bytes"
            except OSError as error:
                count, why = 0, str(error)
            done += count
            failures = 0 if count else failures + 1
            if failures == PATIENCE:
                remedy = "Check the network, then run again."
                raise StoreError(
                    self.name, f"could not read it in {PATIENCE} tries: {why}", tensor=tensor, remedy=remedy
                )
            if failures:
                time.sleep(FIRST_WAIT * 2 ** (failures - 1))

    def verify_unchanged(self) -> None:
        """Raises StoreError if it has another size or version now."""
        try:
            now = self._place.stamp(self._item)
        except OSError as error:
            raise StoreError(self.name, f"could not look at the file again: {error}") from error
        if now != self._item.stamp:
            raise changed(self._item)

    def close(self) -> None:
        """Its place closes the connections."""
