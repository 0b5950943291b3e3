"""Files of any store that fsspec knows, such as `s3://` and `gs://`. Credentials are those that its drivers find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.address import scheme_of
from brainsurgery_jax.store.io.files import Stamp
from brainsurgery_jax.store.remote.places import RemoteItem, missing_package

_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "mtime", "created")
"""What drivers call the version of an object, the surest first."""

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class FilesystemPlace:
    """A file or a folder of a store that fsspec knows; see `places.RemotePlace`."""

    def __init__(self, url: str):
        self._shown = url
        self._fs, self._root = connect(url)

    def list(self) -> Mapping[str, RemoteItem]:
        """The files below the address, or the one that it names."""
        root = self._root.rstrip("/")
        with driver_errors(self._shown):
            found: dict[str, dict[str, Any]] = self._fs.find(root, detail=True)
        if not found:
            raise StoreError(self._shown, "there is nothing at this address", remedy="Check the address.")
        if set(found) == {root}:
            return {root.rpartition("/")[2]: _item(self._shown, root, found[root])}
        items = ((path.removeprefix(root).lstrip("/"), path, entry) for path, entry in found.items())
        return {name: _item(f"{self._shown.rstrip('/')}/{name}", path, entry) for name, path, entry in items}

    def stamp(self, item: RemoteItem) -> Stamp:
        """The size and the version that a file has now."""
        self._fs.invalidate_cache()
        with driver_errors(item.shown):
            return _stamp(self._fs.info(item.url))

    def read_some(self, item: RemoteItem, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view`."""
        with driver_errors(item.shown):
            content = self._fs.cat_file(item.url, start=offset, end=offset + len(view))
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Drivers share their connections, and close them at the end of the process."""


def connect(url: str) -> tuple[Any, str]:
    """The driver of an address, and the path that it has there. Raises StoreError."""
    scheme = scheme_of(url)
    try:
        import fsspec
    except ImportError:
        raise missing_package(url, "fsspec") from None
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError:
        raise missing_package(url, _PACKAGES.get(scheme, f"the driver of {scheme}://")) from None
    except ValueError:
        remedy = "Use hf://, https://, s3:// or gs://, or another scheme of fsspec."
        raise StoreError(url, f"'{scheme}' is no scheme that is known", remedy=remedy) from None


def _item(shown: str, path: str, entry: Mapping[str, Any]) -> RemoteItem:
    return RemoteItem(path, shown, _stamp(entry))


def _stamp(entry: Mapping[str, Any]) -> Stamp:
    version = next((str(entry[key]) for key in _VERSIONS if entry.get(key)), "")
    return Stamp(int(entry["size"]), version)


@contextmanager
def driver_errors(shown: str, doing: str = "read it") -> Iterator[None]:
    """A block that asks a driver. What asking again cannot mend becomes a StoreError, all else an OSError: drivers
    raise errors of their own, which may name keys, so that their texts go nowhere."""
    try:
        yield
    except FileNotFoundError:
        raise StoreError(shown, "there is nothing at this address", remedy="Check the address.") from None
    except PermissionError as error:
        remedy = "Check the address and your credentials."
        raise StoreError(shown, f"could not {doing} (PermissionError)", remedy=remedy) from error
    except Exception as error:
        raise OSError(f"the store failed ({type(error).__name__})") from error
