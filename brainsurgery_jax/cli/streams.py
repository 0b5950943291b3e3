"""The standard streams of the command may be closed, full, or read by somebody who goes away. None of these stops
a run: what cannot be written is lost, and the exit code of a command without another failure says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, TextIO

from brainsurgery_jax.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from typing_extensions import Buffer


class LossyFile(FileIO):
    """A descriptor for writing. The first failure is kept in `failure`, and what is written from then on is dropped."""

    failure: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write bytes, or drop them."""
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


@contextmanager
def guard_streams() -> Iterator[None]:
    """A block in which writing to the standard streams does not fail. At its end, lost results become an exit code."""
    _fill_closed_descriptors()
    out, sys.stdout = _guard(sys.stdout, 1)
    _, sys.stderr = _guard(sys.stderr, 2)
    try:
        yield
    except SystemExit as stop:
        _settle(out, stop.code)
        raise
    _settle(out, 0)


def _fill_closed_descriptors() -> None:
    """Open the descriptors 0, 1 and 2 where they are closed, to nowhere. Else an output would get one of them, and what
    a library prints would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)


def _guard(stream: TextIO | None, number: int) -> tuple[LossyFile, TextIO]:
    """A stream like a standard one whose writes do not fail, and the file below it. One that is none of ours stays."""
    file = LossyFile(number, "w", closefd=False)
    if stream is not None and not isinstance(stream, TextIOWrapper):
        return file, stream
    encoding = "utf-8" if stream is None else stream.encoding
    buffered = stream is not None and stream.line_buffering
    # A name that the terminal cannot show is no failure.
    return file, TextIOWrapper(BufferedWriter(file), encoding, "backslashreplace", line_buffering=buffered)


def _settle(out: LossyFile, code: object) -> None:
    """Raise SystemExit if results were lost and nothing else failed. A reader who went away is no failure."""
    with suppress(ValueError):  # closed by the command itself
        sys.stdout.flush()
    if out.failure is None or isinstance(out.failure, BrokenPipeError) or code:
        return
    from brainsurgery_jax.cli import show

    show.remark(f"standard output: could not write all results: {out.failure.strerror}")
    raise SystemExit(int(ExitCode.FILES))
