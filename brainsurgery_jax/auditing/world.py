"""The files as an audited plan sees them: stand-ins in place of checkpoints, outputs in a temporary folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from brainsurgery_jax.auditing.cases import StandIn, key_of
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.io.files import Left, StagedOutput
from brainsurgery_jax.store.io.in_memory import MemorySource
from brainsurgery_jax.store.publishing import BY_PLACE
from brainsurgery_jax.store.replacing import Replacement
from brainsurgery_jax.store.sidecars import SideFiles, find_side_files
from brainsurgery_jax.world import Files


class Redirect:
    """A commit that puts every output into a folder, whatever its destination. `places`: where each went."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.places: dict[str, Path] = {}

    def stage(self, destination: str, *, overwrite: bool, own: Collection[str]) -> StagedOutput:
        """An output that will appear in the folder."""
        place = self.folder / str(len(self.places)) / os.path.basename(os.path.normpath(destination))
        self.places[destination] = place
        return BY_PLACE.stage(str(place), overwrite=overwrite, own=())

    def prepare(self, staged: Sequence[StagedOutput]) -> None:
        """Nothing: they appear here."""

    def publish(self, staged: Sequence[StagedOutput], *, durable: bool) -> tuple[Left, ...]:
        """Make all outputs appear there."""
        return BY_PLACE.publish(staged, durable=durable)


class StandInFiles(Files):
    """A world of stand-ins. No checkpoint, config or side file of the user is opened, and none is written."""

    def __init__(self, stand_ins: Mapping[str, StandIn], folder: Path, opened: dict[str, Source] | None = None):
        super().__init__(overwrite=True)
        self._stand_ins, self._folder = stand_ins, folder
        self._opened: dict[str, Source] = {} if opened is None else opened
        self.commit = self.redirect = Redirect(folder / "outputs")

    def twin(self, *, opens: bool = True) -> StandInFiles:
        """A world of the same stand-ins."""
        return StandInFiles(self._stand_ins, self._folder, self._opened)

    def open(self, path: str, format: str | None = None) -> Source:
        """The stand-in for the checkpoint at a path."""
        key = key_of(path)
        if key not in self._stand_ins:
            raise StoreError(path, "no such file or folder")
        if key not in self._opened:
            it = self._stand_ins[key]
            self._opened[key] = MemorySource(path, it.tensors, it.avals, it.metadata, it.tree)
        return self._opened[key]

    def check_destination(
        self, path: str, nbytes: int, *, overwrite: bool, directory: bool
    ) -> Replacement | None:  # fmt: skip
        """None: outputs go elsewhere, so nothing is in their way."""

    def side_files(self, checkpoint: str) -> SideFiles | None:
        """The side files of a stand-in."""
        key = key_of(checkpoint)
        if key not in self._stand_ins or not self._stand_ins[key].side:
            return None
        return find_side_files(self._write(key))

    def side_file(self, checkpoint: str, name: str) -> bytes | None:
        """A side file of a stand-in, or of the folder that it was written to."""
        it = self._stand_ins.get(key_of(checkpoint))
        if it is not None:
            return it.side.get(name)
        return super().side_file(checkpoint, name) if Path(checkpoint).is_relative_to(self._folder) else None

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, key: str) -> Path:
        """A folder with the side files of a stand-in, from which an output takes them; written once."""
        place = self._folder / "side" / str(list(self._stand_ins).index(key))
        for name, content in self._stand_ins[key].side.items() if not place.is_dir() else ():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return place
