"""System errors made into `StoreError`s that name the file and say what to do."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable

from brainsurgery_jax.errors import StoreError, did_you_mean


def remedy_for(error: OSError) -> str:
    """What a user can do about a system error, or an empty string."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "Free some space there, or write to another disk."
        case errno.EACCES | errno.EPERM:
            return "Check the permissions of the file and of the folders above it."
        case errno.EROFS:
            return "The file system is mounted read-only; write to another place."
        case errno.EMFILE | errno.ENFILE:
            return "Too many files are open; raise the limit with `ulimit -n 4096`."
        case errno.EIO:
            return "The disk or network reported a fault; check it before trying again."
    return ""


class os_failures:
    """Turns an OSError of its block into a StoreError: `PATH: could not DOING: REASON`."""

    __slots__ = ("doing", "path")

    def __init__(self, path: object, doing: str):
        self.path, self.doing = path, doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            problem = f"could not {self.doing}: {error.strerror or error}"
            raise StoreError(self.path, problem, remedy=remedy_for(error)) from error


def no_tensor(path: str, name: str, names: Collection[str]) -> StoreError:
    """The error that a checkpoint with these names has no such tensor."""
    return StoreError(path, f"has no tensor '{name}' ({len(names)} tensors).{did_you_mean(name, names)}")


def check_unicode(path: str, texts: Iterable[str]) -> None:
    """Raises StoreError for a text that no file can hold in UTF-8: one with half a surrogate pair."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            remedy = "Rename the tensor, or drop that metadata."
            raise StoreError(path, f"{text[:80]!r} is not valid Unicode: {error.reason}", remedy=remedy) from error
