"""The common part of sources that wrap another source."""

from __future__ import annotations

from brainsurgery_jax.store.base import Fingerprint, Header, Source, fingerprint_of


class SourceOver:
    """The part of `base.Source` that another source answers; who inherits it reads from `self._source`."""

    def __init__(self, header: Header, source: Source):
        self.header, self._source = header, source

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read so far, gaps of strided reads included, headers not."""
        return self._source.bytes_read

    @property
    def fingerprint(self) -> Fingerprint:
        """The stamps of the files that are read, and a digest of this header."""
        return fingerprint_of(self.header, self._source.fingerprint.stamps)

    def verify_unchanged(self) -> None:
        """Raises StoreError if a file was replaced, resized or written to since it was opened."""
        self._source.verify_unchanged()

    def close(self) -> None:
        """Gives back what the other source holds open."""
        self._source.close()
