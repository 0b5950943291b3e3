"""How outputs appear, whole or not at all: by a rename on a file system, in an object store by the files that are
uploaded last, on the hub by a commit."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.address import is_remote, scheme_of, without_secrets
from brainsurgery_jax.store.atomic import Staged, Upload, publish, stage
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.io.files import Left, StagedOutput
from brainsurgery_jax.store.replacing import Replacement, check_destination


class ByPlace:
    """Outputs where their destinations say; see `files.Commit`."""

    def stage(self, destination: str, *, overwrite: bool, own: Collection[str]) -> Staged:
        """An output that is staged beside its destination; a remote one among the temporary files of this machine."""
        if not is_remote(destination):
            return stage(destination, overwrite=overwrite, own=own)
        path = _staging_path(destination)
        with os_failures(path, "create the folder"):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        staged = stage(path, overwrite=True)
        return staged._replace(
            destination=without_secrets(destination), upload=_upload_to(destination, overwrite=overwrite)
        )

    def prepare(self, staged: Sequence[StagedOutput]) -> None:
        """Uploads the data of remote outputs, and removes it again if that fails."""
        for item, upload in _uploads(staged):
            upload.send(item.place)

    def publish(self, staged: Sequence[StagedOutput], *, durable: bool) -> tuple[Left, ...]:
        """Renames outputs into place, then ends uploads. If one fails, the error says which are published already."""
        here = [item for item in staged if isinstance(item, Staged) and item.upload is None]
        left = publish(here, durable=durable)
        done = [item.destination for item in here]
        for item, upload in _uploads(staged):
            try:
                upload.finish()
            except StoreError as bad:
                told = f"Published already: {', '.join(done) or 'none'}. {bad.remedy}"
                raise StoreError(bad.path, bad.problem, remedy=told) from bad
            done.append(item.destination)
            try:
                item.abandon()  # what was staged here
            except StoreError as bad:
                left = (*left, Left(item.destination, item.staging, bad.problem))
        return left


BY_PLACE = ByPlace()


def check_remote(url: str, nbytes: int, *, overwrite: bool, directory: bool) -> Replacement | None:
    """What an output of `nbytes` bytes would replace at an address. Raises StoreError if it could not be made on this
    machine and uploaded. Writes nothing."""
    here = _staging_path(url)
    try:
        check_destination(here, nbytes, True, directory=directory)
    except StoreError as bad:
        remedy = "An output is made there before it is uploaded; the variable TMPDIR names another place."
        raise StoreError(bad.path, bad.problem, remedy=remedy) from bad
    return _upload_to(url, overwrite=overwrite).check(directory=directory)


def _upload_to(url: str, *, overwrite: bool) -> Upload:
    """What takes an output to an address; only who uploads should wait for it."""
    if scheme_of(url) == "hf":
        from brainsurgery_jax.store.remote.hub_upload import HubUpload

        return HubUpload(url, overwrite=overwrite)
    from brainsurgery_jax.store.remote.upload import ObjectUpload

    return ObjectUpload(url)


def _uploads(staged: Sequence[StagedOutput]) -> Iterator[tuple[Staged, Upload]]:
    for item in staged:
        if isinstance(item, Staged) and item.upload is not None:
            yield item, item.upload


def _staging_path(url: str) -> str:
    """Where an output of a store is made on this machine: below the folder of temporary files, for this user alone.
    It is the same for every run, so that what a killed one left is found and removed."""
    folder = os.path.join(tempfile.gettempdir(), f"brainsurgery-uploads-{os.getuid()}")
    status = os.lstat(folder) if os.path.lexists(folder) else None
    if status and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077):
        remedy = "Delete it, or name another folder for temporary files by the variable TMPDIR."
        raise StoreError(folder, "is not a folder of this user alone", remedy=remedy)
    name = url.rstrip("/").rpartition("/")[2]
    return os.path.join(folder, f"{blake2b(url.encode(), digest_size=8).hexdigest()}-{name}")
