"""The names of a remote place as files of a folder here. What decides by names and small configs, which files are a
checkpoint and which go with it, decides there as it does for a local folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.completeness import is_index
from brainsurgery_jax.store.folder import ADAPTER_CONFIG, holds_adapter, is_weights, suffix_of
from brainsurgery_jax.store.io.files import CHUNK, File, read_bytes
from brainsurgery_jax.store.remote.places import CONNECTIONS
from brainsurgery_jax.store.sidecars import MAX_SIDECAR, READ_TO_FIND, is_side_name


class Mirror:
    """The small files of a place in a folder of this machine. `files` are those of the place, by relative names.
    `whole`: what cannot belong to a checkpoint is there by its name, too."""

    def __init__(self, folder: str, files: Mapping[str, File], *, whole: bool = False):
        self.folder, self.files, self._fetched = folder, files, set[str]()
        top = [name for name in files if "/" not in name]
        first = {n for n in top if is_index(n) or suffix_of(n) == ".py" or n in READ_TO_FIND}
        first |= {ADAPTER_CONFIG} if ADAPTER_CONFIG in top and holds_adapter(top) else set()
        for name in files:
            small = files[name].size <= MAX_SIDECAR
            later = small and (_is_beside(name) if "/" in name else is_side_name(name))
            if _is_weights(name) or ((later or whole) and not (small and name in first)):
                self._stand_in(name)
        self.fetch(first)

    def fetch(self, names: Iterable[str]) -> None:
        """Writes files of the place that are not too large for side files, as a whole."""
        wanted = [n for n in names if n not in self._fetched and self.files[n].size <= MAX_SIDECAR]
        with ThreadPoolExecutor(CONNECTIONS) as pool:  # of its own: a long read waits for parts in the shared one
            for written in [pool.submit(fetch_file, self.path_of(name), self.files[name]) for name in wanted]:
                written.result()
        self._fetched.update(wanted)

    def path_of(self, name: str) -> str:
        """The path of a file, in a folder that is there. Raises StoreError for a name that leads elsewhere."""
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part or os.sep in part for part in parts):
            raise StoreError(self.files[name].name, "has a name that leads out of its folder")
        path = os.path.join(self.folder, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def file_at(self, path: str) -> File:
        """The file of the place that a path in the folder stands for."""
        return self.files[os.path.relpath(path, self.folder).replace(os.sep, "/")]

    def _stand_in(self, name: str) -> None:
        """A file of that name and size which takes no space: its name says what is there, its bytes are never read."""
        with open(self.path_of(name), "xb") as file:
            file.truncate(self.files[name].size)


def fetch_file(path: str, file: File) -> None:
    """Writes a file of a place as a whole."""
    with open(path, "wb") as target:
        for at in range(0, file.size, CHUNK):
            target.write(read_bytes(file, min(CHUNK, file.size - at), at))


def _is_weights(name: str) -> bool:
    return is_weights(name.rpartition("/")[2])


def _is_beside(name: str) -> bool:
    """Whether a file of a folder below could belong to the model: what the folders of sentence-transformers and of
    diffusers hold beside weights."""
    folder, _, last = name.rpartition("/")
    return "/" not in folder and (is_side_name(last) or suffix_of(last) == ".jinja")
