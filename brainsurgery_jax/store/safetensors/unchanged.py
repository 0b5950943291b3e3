"""Output files that may be an input file as it stands: header, order and padding included. Found from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.store.base import FileRun, PlainFile, Source


class Original(NamedTuple):
    """A file of a source that an output file can be made a copy of, and the name of a tensor in it."""

    source: Source
    file: int
    plain: PlainFile
    tensor: str

    @property
    def run(self) -> FileRun:
        """All of the file."""
        run = self.source.file_run(self.tensor, 0, 0)
        assert run is not None, "a plain file has runs"
        return run._replace(offset=0, nbytes=self.plain.nbytes)


def original_of(names: Sequence[str], unchanged: Mapping[str, Source], metadata: Mapping[str, str]) -> Original | None:
    """The source file that holds exactly these tensors and this metadata; None if there is none.

    `unchanged` are the tensors that are written as a source holds them, under the same name, and that source.
    """
    source = unchanged.get(names[0]) if names else None
    if source is None:
        return None
    tensors = source.header.tensors
    file = tensors[names[0]].file
    plain = source.header.plain.get(file)
    if plain is None or plain.tensors != len(names) or plain.metadata != metadata:
        return None
    if any(unchanged.get(name) is not source or tensors[name].file != file for name in names):
        return None
    return Original(source, file, plain, names[0])
