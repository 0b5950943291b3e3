"""Files that come and go: uploads that replace nothing, folders as a stream of one tar archive."""

from __future__ import annotations

import os
import secrets
import tarfile
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.store.atomic import create_folders, remove_empty
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.web.confined import Root

PIECE = 1 << 20
"""Bytes that are read and sent at a time."""

_BLOCK = 512


class ArchiveMember(NamedTuple):
    """A file of an archive: its name there, its real path, its header, and how many bytes it holds."""

    name: str
    path: str
    head: bytes
    nbytes: int


def list_members(root: Root, folder: str) -> list[ArchiveMember]:
    """The files below a folder, in order of name; links are followed. Raises StoreError for a file outside the root."""
    top = root.confine(folder)
    found: list[ArchiveMember] = []
    for here, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # as the list of files shows them
        for name in folders:
            path = os.path.join(here, name)
            root.confine(path)
            if os.path.islink(path):
                remedy = "Download the folder that it leads to by itself."
                raise StoreError(path, "is a link to a folder, which no archive holds", remedy=remedy)
        for name in sorted(name for name in files if not name.startswith(".")):
            path = os.path.join(here, name)
            real = root.confine(path)
            entry = tarfile.TarInfo(os.path.join(os.path.basename(top), os.path.relpath(path, top)))
            with os_failures(path, "read the file"), open_regular(real) as file:
                state = os.fstat(file.fileno())
            entry.size, entry.mtime, entry.mode = state.st_size, int(state.st_mtime), 0o644
            found.append(ArchiveMember(entry.name, real, entry.tobuf(tarfile.PAX_FORMAT), state.st_size))
    return found


def size_of_archive(members: list[ArchiveMember]) -> int:
    """The bytes of the archive that `stream_archive` yields."""
    return sum(len(one.head) + one.nbytes + -one.nbytes % _BLOCK for one in members) + 2 * _BLOCK


def stream_archive(members: list[ArchiveMember]) -> Iterator[bytes]:
    """A tar archive, piece by piece. Raises StoreError if a file gets shorter meanwhile: the answer then ends early,
    and its length tells the browser."""
    for one in members:
        yield one.head
        left = one.nbytes
        with os_failures(one.path, "read the file"), open_regular(one.path) as file:
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise StoreError(one.path, "got shorter while it was sent", remedy="Download the folder once more.")
                left -= len(piece)
                yield piece
        yield bytes(-one.nbytes % _BLOCK)
    yield bytes(2 * _BLOCK)


async def take_upload(root: Root, path: str, pieces: AsyncIterator[bytes]) -> str:
    """Write what a browser sends to a new file below the root; its path there. Raises StoreError for a path that is
    refused, or that exists. What is not complete does not stay."""
    parts = path.split("/")
    if not path or any(part in ("", "..") or part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        raise StoreError(path, "is no name for an upload", remedy="Rename the file: no part may begin with a dot.")
    target = Path(root.confine(path))
    if os.path.lexists(target):
        raise StoreError(path, "exists already, and is not replaced", remedy="Rename the file, and upload it again.")
    created = create_folders(str(target.parent))
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with os_failures(path, "write the file"):
            with partial.open("xb") as file:
                async for piece in pieces:
                    await to_thread(file.write, piece)
            try:
                os.link(partial, target)  # fails where a rename would replace
            except FileExistsError as error:
                remedy = "Rename the file, and upload it again."
                raise StoreError(path, "exists already, and is not replaced", remedy=remedy) from error
    finally:
        with suppress(OSError):
            partial.unlink()
        remove_empty(created)
    return path
