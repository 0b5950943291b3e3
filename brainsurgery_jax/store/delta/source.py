"""Reading a base and a delta as one checkpoint."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.store.base import FileRun, Fingerprint, Header, Source, TensorInfo, fingerprint_of
from brainsurgery_jax.store.delta.manifest import Manifest, digest_types, read_manifest, sample
from brainsurgery_jax.store.failures import no_tensor
from brainsurgery_jax.store.folder import DELTA, DELTA_MANIFEST
from brainsurgery_jax.store.safetensors.source import open_safetensors
from brainsurgery_jax.wording import few

if TYPE_CHECKING:
    import numpy as np


class DeltaSource:
    """A base and a delta as one checkpoint; see `base.Source`. Names, order and metadata are those of the delta."""

    def __init__(self, path: str, folder: str, base: Source, delta: Source, manifest: Manifest):
        self._base, self._delta, self._manifest = base, delta, manifest
        ahead = len(base.header.files)
        tensors: dict[str, TensorInfo] = {}
        for name, own in manifest.tensors.items():
            held = (delta if own is None else base).header.tensors
            if (own or name) not in held:
                raise StoreError(folder, f"its manifest names '{own or name}', which is not there", tensor=name)
            info = held[own or name]
            tensors[name] = info._replace(file=info.file + ahead) if own is None else info
        files = (*base.header.files, *delta.header.files)
        self.header = Header(
            path,
            files,
            tensors,
            delta.header.metadata,
            notes=base.header.notes,
            side_folder=folder,
            reading=base.header.reading,
        )

    def _find(self, name: str) -> tuple[Source, str]:
        if name not in self._manifest.tensors:
            raise no_tensor(self.header.path, name, self._manifest.tensors)
        own = self._manifest.tensors[name]
        return (self._delta, name) if own is None else (self._base, own)

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far from both."""
        return self._base.bytes_read + self._delta.bytes_read

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor."""
        source, own = self._find(name)
        return source.read(own, box)

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order."""
        source, own = self._find(name)
        return source.read_range(own, start, stop)

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`, where they lie."""
        source, own = self._find(name)
        return source.file_run(own, start, stop)

    @property
    def fingerprint(self) -> Fingerprint:
        """The stamps of the files of both, and a digest of this header."""
        stamps = {**self._base.fingerprint.stamps, **self._delta.fingerprint.stamps}
        return fingerprint_of(self.header, stamps)

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file of either was replaced, resized or written to."""
        self._base.verify_unchanged()
        self._delta.verify_unchanged()

    def close(self) -> None:
        """Closes both."""
        self._base.close()
        self._delta.close()


def open_alone(folder: str) -> Source:
    """The tensors that the delta in a folder holds itself, without its base. Raises StoreError."""
    return open_safetensors(os.path.join(folder, DELTA))


def open_sum(path: str, base: Source, folder: str) -> DeltaSource:
    """The checkpoint that a delta in `folder` makes of its base, which the result closes. Raises StoreError."""
    with ExitStack() as on_failure:
        on_failure.callback(base.close)
        place = os.path.join(folder, DELTA_MANIFEST)
        if not os.path.isfile(place):
            raise StoreError(folder, "is no delta", remedy="Write BASE + DELTA, a checkpoint and a delta of it.")
        manifest = read_manifest(place)
        _check_base(folder, base, manifest)
        delta = open_alone(folder)
        on_failure.callback(delta.close)
        found = DeltaSource(path, folder, base, delta, manifest)
        on_failure.pop_all()
    return found


def _check_base(folder: str, base: Source, manifest: Manifest) -> None:
    """Raises StoreError if a base is not the one that a delta was written for."""
    remedy = f"It was written for '{manifest.base}'."
    own = {name for name in manifest.tensors.values() if name is not None}
    if digest_types(base, own) != manifest.types:
        problem = f"is a delta of another checkpoint than {base.header.path}: names, shapes or dtypes differ"
        raise StoreError(folder, problem, remedy=remedy)
    others = [name for name, digest in manifest.samples.items() if sample(base, name) != digest]
    if others:
        problem = f"is a delta of another checkpoint than {base.header.path}: values differ in {few(others)}"
        raise StoreError(folder, problem, remedy=remedy)
