"""Opening a remote checkpoint: configs are fetched into a folder of this machine, weights stay where they are.

In that folder, files without bytes stand for all others: names and sizes tell which files are the checkpoint, and which
go with it. Bytes of weights are read from the remote place, each range when it is needed; a tokenizer, a licence and
the like are fetched when an output gets them, or a step reads them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.store import peft
from brainsurgery_jax.store.address import scheme_of, without_secrets
from brainsurgery_jax.store.base import FileRun, Note, Source
from brainsurgery_jax.store.completeness import choose, is_index
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import ADAPTER, OLD_ADAPTER, holds_adapter, suffix_of
from brainsurgery_jax.store.io.files import File, read_bytes
from brainsurgery_jax.store.io.forwarding import SourceOver
from brainsurgery_jax.store.remote.cache import CACHE, CachedPlace
from brainsurgery_jax.store.remote.file import RemoteFile
from brainsurgery_jax.store.remote.mirror import Mirror, fetch_file
from brainsurgery_jax.store.remote.places import CONNECTIONS, RemoteItem, RemotePlace
from brainsurgery_jax.store.remote.upload_note import NOTE, read_note
from brainsurgery_jax.store.safetensors.source import SUFFIXES, SafetensorsSource
from brainsurgery_jax.store.sidecars import MAX_SIDECAR
from brainsurgery_jax.wording import few

if TYPE_CHECKING:
    import numpy as np


class RemoteSource(SourceOver):
    """A remote checkpoint; see `base.Source`. `header.side_folder` holds its side files until it is closed."""

    def __init__(self, url: str, place: RemotePlace):
        with ExitStack() as on_failure:
            on_failure.callback(place.close)
            folder = tempfile.mkdtemp(prefix="brainsurgery-remote-")
            on_failure.callback(shutil.rmtree, folder, ignore_errors=True)
            executor = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="remote")
            on_failure.callback(executor.shutdown, cancel_futures=True)
            files = {name: RemoteFile(place, item, executor) for name, item in _list(place, url).items()}
            _refuse_broken_upload(url, files)
            root = _root_of(url, files)
            with _called(folder, root):
                mirror = Mirror(folder, files)
                source = _open_adapter(mirror) if holds_adapter(files.keys()) else _open_tensors(mirror, url)
            notes = tuple(_rename(note, folder, root) for note in source.header.notes)
            header = replace(source.header, path=url, side_folder=folder, bring=mirror.fetch, notes=notes)
            super().__init__(header, source)
            on_failure.pop_all()
        self._end = weakref.finalize(self, _end, folder, place, executor)

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """The box, or the whole tensor."""
        return self._source.read(name, box)

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` in row-major order."""
        return self._source.read_range(name, start, stop)

    def file_run(self, name: str, start: int, stop: int) -> FileRun | None:
        """The bytes of elements `start` to `stop` in a remote file."""
        return self._source.file_run(name, start, stop)

    def close(self) -> None:
        """Closes connections and removes the folder of side files."""
        super().close()
        self._end()


def open_remote(url: str) -> RemoteSource:
    """The checkpoint at a remote address. Raises StoreError."""
    shown = without_secrets(url)
    match scheme_of(url):
        case "hf":
            from brainsurgery_jax.store.remote.hub import HubPlace

            place: RemotePlace = HubPlace(url)
        case "http" | "https":
            from brainsurgery_jax.store.remote.http import HttpPlace

            place = HttpPlace(url)
        case _:
            from brainsurgery_jax.store.remote.filesystem import FilesystemPlace

            place = FilesystemPlace(url)
    if folder := os.environ.get(CACHE):
        place = CachedPlace(place, folder)
    return RemoteSource(shown, place)


def _list(place: RemotePlace, url: str) -> Mapping[str, RemoteItem]:
    with os_failures(url, "list the files"):
        return place.list()


def _refuse_broken_upload(url: str, files: Mapping[str, File]) -> None:
    """StoreError for a folder that a run still uploads to, or was cut off while it did."""
    note = read_note(read_bytes(files[NOTE], min(files[NOTE].size, MAX_SIDECAR), 0)) if NOTE in files else None
    if note is not None and not note.is_complete({name: file.size for name, file in files.items()}):
        there = sum(name in files for name in note.sizes)
        problem = f"is an upload that has not ended: {there} of {len(note.sizes)} files are there"
        raise StoreError(url, problem, remedy="Wait for the run that uploads it; if it was cut off, run it again.")


def _open_adapter(mirror: Mirror) -> Source:
    """An adapter, fetched as a whole: it is small, and read through its config."""
    for name in (ADAPTER, OLD_ADAPTER):
        if name in mirror.files:
            fetch_file(mirror.path_of(name), mirror.files[name])
    return peft.open_source(mirror.folder)


def _open_tensors(mirror: Mirror, url: str) -> Source:
    chosen = choose(_chosen_path(mirror, url), SUFFIXES)
    files = {path: mirror.file_at(path) for path in chosen.files}
    listed = chosen.listed
    if listed is not None:
        weight_map = {tensor: files[path].name for tensor, path in listed.weight_map.items()}
        listed = listed._replace(path=mirror.file_at(listed.path).name, weight_map=weight_map)
    return SafetensorsSource(mirror.folder, [*files.values()], listed, chosen.notes)


def _chosen_path(mirror: Mirror, url: str) -> str:
    """The path in the mirror of what the address names: a file if it is the name of one, else the folder."""
    own = unquote(url.rstrip("/").rpartition("/")[2])
    weights = [name for name in mirror.files if suffix_of(name) in SUFFIXES or is_index(name)]
    if own in weights:
        return os.path.join(mirror.folder, own)
    if all("/" in name for name in weights):
        there = f"There are checkpoints below: {few(weights)}. Name the folder of one." if weights else ""
        remedy = there or "Download it first: of remote places, safetensors files and adapters are read."
        raise StoreError(url, f"holds no safetensors file at its top: {few([*mirror.files])}", remedy=remedy)
    return mirror.folder


@contextmanager
def _called(folder: str, url: str) -> Iterator[None]:
    """A block whose errors name the remote place, not the folder that stands for it."""
    try:
        yield
    except StoreError as bad:
        problem, remedy = (text.replace(folder, url) for text in (bad.problem, bad.remedy))
        raise StoreError(
            bad.path.replace(folder, url), problem, tensor=bad.tensor, remedy=remedy, code=bad.code
        ) from bad


def _root_of(url: str, files: Mapping[str, File]) -> str:
    """The address of the folder whose files are listed: that of the one that the address names, or the address."""
    head, _, own = url.rstrip("/").rpartition("/")
    return head if unquote(own) in files else url.rstrip("/")


def _rename(note: Note, folder: str, url: str) -> Note:
    return note._replace(message=note.message.replace(folder, url), hint=note.hint.replace(folder, url))


def _end(folder: str, place: RemotePlace, executor: ThreadPoolExecutor) -> None:
    executor.shutdown(cancel_futures=True)
    place.close()
    shutil.rmtree(folder, ignore_errors=True)
