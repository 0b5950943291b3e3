"""The files that the browser may reach: those below one folder, after every link is followed; and no pickles."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from brainsurgery_jax.api import Plan
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.plan.source import Node, plain
from brainsurgery_jax.provenance.lock import lock_path
from brainsurgery_jax.store.address import expand_hub_name, is_remote, parse_address, split_sum
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.detect import holds_pickles
from brainsurgery_jax.store.replacing import Replacement
from brainsurgery_jax.store.sidecars import SideFiles
from brainsurgery_jax.world import Files

_ENVIRONMENT = re.compile(r"\$\{\s*(?:env|oc\.env)\b")
_MARKS = re.compile(r"[\s'\",\[\]{}]+")


class Root:
    """The folder that the browser may read and write, and whether torch files may be opened."""

    def __init__(self, folder: str, *, allow_torch: bool = False):
        self.folder, self.allow_torch = os.path.realpath(os.path.expanduser(folder)), allow_torch

    def confine(self, path: str) -> str:
        """The real path of a file or folder below the root; relative paths start there. Raises StoreError."""
        if is_remote(path):
            remedy = "Run the plan on the command line, or download the model into the folder first."
            raise StoreError(path, "is a remote place, and this page reads this machine alone", remedy=remedy)
        real = os.path.realpath(os.path.join(self.folder, os.path.expanduser(path)))
        if real != self.folder and not real.startswith(self.folder.rstrip(os.sep) + os.sep):
            remedy = "Start `brainsurgery-jax web` with another `--root` to open it."
            raise StoreError(path, "lies outside the folder that this page may use", remedy=remedy)
        return real

    def files(self, *, overwrite: bool = False) -> ConfinedFiles:
        """The files that plans of the browser see."""
        return ConfinedFiles(self, overwrite=overwrite)

    def entries(self, folder: str) -> list[tuple[str, bool]]:
        """The names in a folder, folders first, each with whether it is one; what leads outside is left out."""
        found: list[tuple[str, bool]] = []
        for entry in os.scandir(self.confine(folder)):
            with suppress(StoreError, OSError):
                self.confine(entry.path)
                if not entry.name.startswith("."):
                    found.append((entry.name, entry.is_dir()))
        return sorted(found, key=lambda item: (not item[1], item[0]))

    def refuse_texts(self, root: Node, plan: Plan) -> None:
        """Refuse a plan that reads the environment, or names a file outside the root, in whatever key. Raises
        StoreError."""
        if any(map(_ENVIRONMENT.search, _words(plain(root)))):
            remedy = "Run the plan on the command line instead."
            raise StoreError("plan.yaml", "a plan in the browser reads no environment", remedy=remedy)
        for step in plan.data.steps:
            for word in _words(step.text):
                self._refuse_word(word)

    def _refuse_word(self, word: str) -> None:
        path = parse_address(word).path if "::" in word and not word.startswith("::") else word
        if os.sep not in path and ".." not in path and not path.startswith("~"):
            return
        with suppress(OSError, ValueError):
            if os.path.lexists(os.path.expanduser(path)):
                self.confine(path)


def _words(data: object) -> Iterator[str]:
    """The texts in plain data, and the words in those of several words, which may be plans themselves."""
    match data:
        case dict():
            for key, value in data.items():
                yield from _words(key)
                yield from _words(value)
        case list() | tuple():
            for value in data:
                yield from _words(value)
        case str():
            yield data
            yield from filter(None, _MARKS.split(data))


class ConfinedFiles(Files):
    """The files below a root."""

    def __init__(self, root: Root, *, overwrite: bool = False, opens: bool = True):
        super().__init__(overwrite=overwrite, opens=opens)
        self._root = root

    def twin(self, *, opens: bool = True) -> ConfinedFiles:
        """A confined world with the same choices, to check in."""
        return ConfinedFiles(self._root, overwrite=self.overwrite, opens=opens)

    def open(self, path: str, format: str | None = None) -> Source:
        """The checkpoint at a path below the root. Raises StoreError for another, and for a pickle."""
        self._check(parse_address(path).path, format)
        source = super().open(path, format)
        for file in source.header.files:
            self._root.confine(file)
        return source

    def _check(self, path: str, format: str | None) -> None:
        """Raises StoreError for a path, or a base or delta of one, outside of the root, and for a pickle."""
        if (both := split_sum(path)) is not None:
            for part in both:
                self._check(part, format)
            return
        real = self._root.confine(expand_hub_name(path))
        if not self._root.allow_torch and os.path.exists(real) and holds_pickles(real, format):
            remedy = "Start `brainsurgery-jax web --allow-torch` if you trust the file."
            raise StoreError(path, "is a torch file, whose pickles are not opened here", remedy=remedy)

    def check_destination(self, path: str, nbytes: int, *, overwrite: bool, directory: bool) -> Replacement | None:
        """What an output below the root would replace. Its lock lies below the root, too, after links are followed."""
        self._root.confine(path)
        if not directory:  # that of a folder is in it, and goes with it
            self._root.confine(lock_path(path, directory=False))
        return super().check_destination(path, nbytes, overwrite=overwrite, directory=directory)

    def side_files(self, checkpoint: str) -> SideFiles | None:
        """The side files of a checkpoint below the root."""
        self._root.confine(parse_address(checkpoint).path)
        return super().side_files(checkpoint)

    def side_file(self, checkpoint: str, name: str) -> bytes | None:
        """What a small file beside a checkpoint holds, both below the root."""
        folder = Path(self._root.confine(parse_address(checkpoint).path))
        self._root.confine(str((folder if folder.is_dir() else folder.parent) / name))
        return super().side_file(checkpoint, name)
