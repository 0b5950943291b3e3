"""Notices when a file is opened outside of a folder. Python tells of every file that it opens itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

import numpy as np

import brainsurgery_jax

_OURS = tuple(
    os.path.realpath(place)
    for place in (sys.prefix, sys.base_prefix, Path(brainsurgery_jax.__file__).parents[1], Path(np.__file__).parents[1])
)
"""What the program is made of, which may be read."""


class Escape(Exception):
    """A file was opened outside of the folder."""


class Watch:
    """A block in which nothing outside of `folder` is opened, or Escape is raised at its end: what an error of the
    system becomes is nobody's to say. A process has as many as are made, for good."""

    def __init__(self, folder: Path):
        self._allowed = (os.path.realpath(folder), *_OURS, "/proc/self", "/dev/null", "/sys/fs/cgroup")
        self._on = False
        self._outside: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[object, ...]) -> None:
        if self._on and event in ("open", "os.listdir", "os.scandir", "os.rename", "os.remove") and given:
            path = given[0]
            if isinstance(path, str | bytes | os.PathLike):
                place = os.path.realpath(os.fsdecode(path))
                if not place.startswith(self._allowed):
                    self._outside.append(place)

    def __enter__(self) -> None:
        self._outside.clear()
        self._on = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._on = False
        if self._outside:
            raise Escape(", ".join(self._outside[:3]))
