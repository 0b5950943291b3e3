"""The note of an upload that has not ended: it keeps what is there from being read as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from brainsurgery_jax.store.runs import RunId

NOTE = ".brainsurgery-upload.json"
"""The note of an upload that has not ended, in the folder that it goes to."""


class UploadNote(NamedTuple):
    """An upload: the run that it belongs to, and the sizes of its files in bytes by relative names."""

    run: RunId
    sizes: Mapping[str, int]

    def to_json(self) -> bytes:
        """The note as it is stored."""
        return json.dumps({"run": list(self.run), "sizes": dict(self.sizes)}).encode()

    def is_complete(self, found: Mapping[str, int]) -> bool:
        """Whether all its files are there: then the upload has ended, and its note alone was not removed."""
        return all(found.get(name) == size for name, size in self.sizes.items())


def read_note(content: bytes) -> UploadNote | None:
    """A note from what is stored; None if it is none."""
    try:
        found = json.loads(content)
        pid, start, host, boot = found["run"]
        return UploadNote(RunId(int(pid), int(start), str(host), str(boot)), {str(n): int(s) for n, s in
                          found["sizes"].items()})  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
