"""Outputs of object stores, which cannot rename a folder: data is uploaded first, and what makes readers see a
checkpoint comes last.

Beside the data of a folder lies a note of the upload until it ends: which run it is, and which files it will have. So
an upload that was cut off is never read as a checkpoint, and the next run from the same host clears it away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.address import scheme_of, without_secrets
from brainsurgery_jax.store.completeness import is_index
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import is_weights
from brainsurgery_jax.store.io.local import LocalPlace
from brainsurgery_jax.store.leftovers import Leftover
from brainsurgery_jax.store.remote.file import FIRST_WAIT, PATIENCE
from brainsurgery_jax.store.remote.filesystem import connect, driver_errors
from brainsurgery_jax.store.remote.upload_note import NOTE, UploadNote, read_note
from brainsurgery_jax.store.runs import RunId, this_run
from brainsurgery_jax.wording import few

CONNECTIONS = 4
"""Files that are uploaded at the same time; drivers cut long ones into parts of their own."""

_COMMITS = ("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA", ".metadata")
"""Files without which orbax and torch see no checkpoint."""

_WITH_FOLDERS = ("file", "local", "sftp", "ssh", "smb", "ftp", "hdfs")
"""Schemes where a file needs a folder to lie in; object stores have names alone."""

_ORBAX, _ORBAX_END = "_CHECKPOINT_METADATA", "commit_success.txt"
"""On Google's store orbax reads a checkpoint only if the second lies beside the first."""


class ObjectUpload:
    """One output on its way to a store that fsspec knows. `send`, then `finish`; or `abandon`."""

    def __init__(self, url: str):
        self._url, self._directory = without_secrets(url).rstrip("/"), True
        self._fs, root = connect(url)
        self._root, self._has_folders = root.rstrip("/"), scheme_of(url) in _WITH_FOLDERS
        self._sent: list[str] = []
        self._last: list[tuple[str, str]] = []

    # --- The destination ----------------------------------------------------------------------------------------------

    def check(self, *, directory: bool) -> None:
        """Raises StoreError unless the destination is free. Changes nothing."""
        self.check_free()

    def check_free(self) -> list[str]:
        """The files that a run of this host left there which was cut off. Raises StoreError if anything else is there.
        Changes nothing."""
        found = self._list()
        if not found:
            return []
        note = self._note_of(found)
        if note is None or note.is_complete(found):
            remedy = (
                "An object store cannot replace a checkpoint as a whole: write to a new address, or delete this first."
            )
            raise StoreError(self._url, f"exists: it holds {few(sorted(found))}", remedy=remedy)
        if note.run.host != this_run().host or _lives(note.run):
            raise self._busy(note)
        if others := sorted(found.keys() - {*note.sizes, NOTE, _ORBAX_END}):
            problem = f"holds other files beside a broken upload: {few(others)}"
            raise StoreError(self._url, problem, remedy="Write to a new address.")
        return [*sorted(found.keys() - {NOTE}), NOTE]

    def _list(self) -> dict[str, int]:
        """The sizes of all files there, by their names relative to the destination."""
        with os_failures(self._url, "ask the store"), driver_errors(self._url):
            self._fs.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._fs.find(self._root, detail=True)
        return {path.removeprefix(self._root).lstrip("/"): int(entry["size"]) for path, entry in found.items()}

    def _note_of(self, found: Collection[str]) -> UploadNote | None:
        if NOTE not in found:
            return None
        with os_failures(self._url, "ask the store"), driver_errors(self._url):
            return read_note(self._fs.cat_file(self._path(NOTE)))

    def _busy(self, note: UploadNote) -> StoreError:
        ours = note.run.host == this_run().host
        who = f"process {note.run.pid}" + ("" if ours else f" of the host {note.run.host}")
        problem = f"{who} uploads to it, or was cut off while it did"
        remedy = "Write to another address, or delete what is there when no run writes to it."
        return StoreError(self._url, problem, remedy=remedy)

    # --- The upload ---------------------------------------------------------------------------------------------------

    def send(self, place: LocalPlace) -> None:
        """Uploads everything but what makes readers see a checkpoint."""
        sizes = {name: os.path.getsize(place.path_of(name)) for name in place.list()}
        last = _last_files(sizes)
        self._directory = "" not in sizes
        self._remove(self.check_free())
        if self._directory:
            self._begin(UploadNote(this_run(), sizes))
        first = [name for name in sizes if name not in last]
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="upload") as pool:
            tasks = [pool.submit(self._put_file, name, place.path_of(name)) for name in first]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._last = [(name, place.path_of(name)) for name in last]

    def finish(self) -> None:
        """Uploads what makes readers see the checkpoint. Raises StoreError if something has appeared there."""
        if not self._directory:
            self.check_free()
        elif not self._is_ours():
            raise StoreError(self._url, "another run uploads to it", remedy="Write to a new address.")
        for name, path in self._last:
            self._put_file(name, path)
        if any(name.rpartition("/")[2] == _ORBAX for name, _ in self._last):
            self._put(_ORBAX_END, lambda path: self._fs.pipe_file(path, b""), None)
        sent, self._sent = self._sent, []  # from here on it is there
        if NOTE in sent:
            with suppress(StoreError):  # beside all files that it names it is in nobody's way
                self._remove([NOTE])

    def abandon(self) -> None:
        """Removes what was uploaded, unless `finish` has returned or another run has taken the place. May be called at
        any time, and twice."""
        sent, self._sent = self._sent, []
        if sent and (not self._directory or self._is_ours()):
            self._remove(sent[::-1])  # the note, which was written first, goes last

    def _is_ours(self) -> bool:
        """Whether the note is still that of this run: not every store sees to it that one run alone writes it."""
        note = self._note_of(self._list())
        return note is not None and note.run == this_run()

    def _begin(self, note: UploadNote) -> None:
        """Writes the note. Stores that can do so see to it that of two runs one alone writes it."""
        taken = False
        with os_failures(self._url, "write to the store"), driver_errors(self._url, "write it"):
            self._make_room(NOTE)
            try:
                self._fs.pipe_file(self._path(NOTE), note.to_json(), mode="create")
            except FileExistsError:
                taken = True
            except NotImplementedError:
                self._fs.pipe_file(self._path(NOTE), note.to_json())
        if taken:
            self.check_free()
            raise StoreError(self._url, "another run uploads to it", remedy="Write to a new address.")
        self._sent.append(NOTE)

    def _put_file(self, name: str, path: str) -> None:
        self._put(name, lambda target: self._fs.put_file(path, target), os.path.getsize(path))

    def _put(self, name: str, put: Callable[[str], object], size: int | None) -> None:
        """Uploads one file in a few tries. `size`: what the store must say of it then."""
        self._sent.append(name)
        shown, why = self._shown(name), ""
        for trial in range(PATIENCE):
            if trial:
                time.sleep(FIRST_WAIT * 2 ** (trial - 1))
            try:
                with driver_errors(shown, "write it"):
                    self._make_room(name)
                    put(self._path(name))
                    self._fs.invalidate_cache()
                    there = int(self._fs.info(self._path(name))["size"])
                if size in (None, there):
                    return
                why = f"{there} of {size} bytes are there"
            except OSError as error:
                why = str(error)
        problem = f"could not write it in {PATIENCE} tries: {why}"
        raise StoreError(shown, problem, remedy="Check the network, then run again.")

    def _remove(self, names: Sequence[str]) -> None:
        with os_failures(self._url, "delete what was uploaded"), driver_errors(self._url, "delete it"):
            for name in names:
                if self._fs.exists(self._path(name)):
                    self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _make_room(self, name: str) -> None:
        """Creates the folder that a file will lie in, where files lie in folders."""
        if self._has_folders:
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _shown(self, name: str) -> str:
        return f"{self._url}/{name}" if name else self._url


def _last_files(names: Collection[str]) -> list[str]:
    """The files that make readers see a checkpoint, in the order in which they are uploaded: an index, the metadata of
    orbax, else the weights."""
    if indexes := [name for name in names if is_index(name)]:
        return indexes
    if commits := [name for name in names if name.rpartition("/")[2] in _COMMITS]:
        return sorted(commits, key=lambda name: _COMMITS.index(name.rpartition("/")[2]))
    return [name for name in names if is_weights(name) or not name]


def _lives(run: RunId) -> bool:
    return Leftover("", "", run).is_alive(this_run())
