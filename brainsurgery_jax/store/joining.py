"""Outputs that another process of the same run has staged: this one writes its part into the files that are there."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import Diagnostic, StoreError
from brainsurgery_jax.store.io.files import Left, StagedOutput
from brainsurgery_jax.store.io.local import LocalPlace, WriteLog
from brainsurgery_jax.store.leftovers import SCRATCH


class JoinedOutput(NamedTuple):
    """An output whose files another process has created at their full sizes; see `files.StagedOutput`. That process
    publishes or removes it."""

    staging: str
    destination: str
    log: WriteLog | None = None

    @property
    def place(self) -> LocalPlace:
        """Where its files are."""
        return LocalPlace(self.staging, again=True, log=self.log)

    @property
    def scratch(self) -> LocalPlace:
        """The file that it is made from, if it is encoded from one."""
        return LocalPlace(self.staging + SCRATCH, again=True, log=self.log)

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """The other process has them."""
        return ()

    def abandon(self) -> None:
        """Leaves all to the other process."""


class Join:
    """Outputs that are staged at these paths, in order; see `files.Commit`."""

    def __init__(self, stagings: Sequence[str], log: WriteLog | None = None):
        self._left, self._log = list(stagings), log

    def stage(self, destination: str, *, overwrite: bool, own: Collection[str]) -> JoinedOutput:
        """The next output. Raises StoreError if its files cannot be seen from here."""
        staging = self._left.pop(0)
        if not os.path.lexists(staging):
            problem = "the files that process 0 has created beside it cannot be seen by this process"
            raise StoreError(destination, problem, remedy="Write to a file system that all processes share.")
        return JoinedOutput(staging, destination, self._log)

    def prepare(self, staged: Sequence[StagedOutput]) -> None:
        """The other process does."""
        raise AssertionError("only process 0 publishes")

    def publish(self, staged: Sequence[StagedOutput], *, durable: bool) -> tuple[Left, ...]:
        """The other process publishes."""
        raise AssertionError("only process 0 publishes")
