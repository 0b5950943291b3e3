"""A checkpoint whose tensors come from several sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.store.base import FileRun, Fingerprint, Header, Source, fingerprint_of
from brainsurgery_jax.store.failures import no_tensor

if TYPE_CHECKING:
    import numpy as np


class JoinedSource:
    """The tensors of several sources as one checkpoint; see `base.Source`. Each tensor of the header is one of exactly
    one of them, under the same name."""

    def __init__(self, header: Header, sources: Sequence[Source]):
        self.header, self._sources = header, tuple(sources)
        self._home = {name: source for source in sources for name in source.header.tensors}

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far."""
        return sum(source.bytes_read for source in self._sources)

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor, as a fresh C-contiguous array that starts at a multiple of 64 bytes."""
        return self._of(name).read(name, box)

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order, one-dimensional, fresh and aligned like `read`."""
        return self._of(name).read_range(name, start, stop)

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop`; None if they do not lie one after the other."""
        return self._of(name).file_run(name, start, stop)

    @property
    def fingerprint(self) -> Fingerprint:
        """The stamps of all files, and a digest of the header."""
        stamps = {path: stamp for source in self._sources for path, stamp in source.fingerprint.stamps.items()}
        return fingerprint_of(self.header, stamps)

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file was replaced, resized or written to since it was opened."""
        for source in self._sources:
            source.verify_unchanged()

    def close(self) -> None:
        """Gives back what the sources hold open."""
        for source in self._sources:
            source.close()

    def _of(self, name: str) -> Source:
        source = self._home.get(name)
        if source is None or name not in self.header.tensors:
            raise no_tensor(self.header.path, name, self.header.tensors)
        return source
