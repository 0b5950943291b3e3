"""Files on a web server, read by the Range header of HTTP (RFC 9110, section 14).

A place is a file, an index of shards, or a folder whose listing the server gives as a page of links.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.address import without_secrets
from brainsurgery_jax.store.io.files import Stamp
from brainsurgery_jax.store.remote.places import CONNECTIONS, RemoteItem, changed, missing_package

MOST_LISTING = 16 << 20
"""Bytes of a listing or an index that are read."""

SECONDS = 30.0
"""How long a server may be silent."""

_PIECE = 1 << 18  # what is read from a connection at once; larger pieces were no faster
_FIRST_PIECE = 1 << 14  # of a piece in which the connection breaks nothing is left, so they begin small
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_REMEDIES = {
    401: "Access needs a login; for the Hugging Face hub: `hf auth login`.",
    403: "Access is refused. Check your rights; a gated model of the hub must be accepted on its page first.",
    404: "Check the address.",
    410: "It is gone for good.",
}


class HttpClient:
    """Connections to web servers. `headers` go to the first server alone: a redirect to another host drops those with
    credentials."""

    def __init__(self, shown: str, headers: Mapping[str, str] | None = None):
        try:
            import urllib3
        except ImportError:
            raise missing_package(shown, "urllib3") from None
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        self._errors = urllib3.exceptions.HTTPError
        timeout = urllib3.Timeout(connect=SECONDS, read=SECONDS)
        retries = urllib3.Retry(total=None, connect=0, read=0, redirect=10, status=0, other=0)
        self._pool = urllib3.PoolManager(maxsize=32, timeout=timeout, retries=retries)

    def stamp(self, url: str, shown: str) -> Stamp:
        """Size and version of a file, from the answer to a request for its first byte. Raises StoreError for a server
        that ignores ranges, since it would send the whole file."""
        answer = self._ask(url, shown, "bytes=0-0")
        try:
            return Stamp(_size_of(answer, shown), _version_of(answer))
        finally:
            answer.close()  # not read to its end: the connection is of no use any more

    def read_some(self, item: RemoteItem, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view`; see `RemotePlace.read_some`."""
        answer = self._ask(item.url, item.shown, f"bytes={offset}-{offset + len(view) - 1}")
        done, most = 0, _FIRST_PIECE
        try:
            _check_answer(answer, item, offset)
            while done < len(view) and (piece := answer.read(min(most, len(view) - done))):
                view[done : done + len(piece)] = piece
                done += len(piece)
                most = min(2 * most, _PIECE)
        except self._errors as broken:
            if not done:
                raise _failure(broken) from broken
        if done < len(view):
            answer.close()
        else:
            answer.release_conn()
        return done

    def read_text(self, url: str, shown: str) -> str:
        """A small text, such as a listing."""
        answer = self._ask(url, shown, None)
        try:
            content = answer.read(MOST_LISTING + 1)
        except self._errors as broken:
            raise _failure(broken) from broken
        finally:
            answer.close()
        if len(content) > MOST_LISTING:
            raise StoreError(shown, f"is longer than {MOST_LISTING:,} bytes, absurd for a listing")
        return content.decode(errors="replace")

    def close(self) -> None:
        """Closes all connections."""
        self._pool.clear()

    def _ask(self, url: str, shown: str, range: str | None) -> Any:
        headers = self._headers if range is None else {**self._headers, "Range": range}
        try:
            answer = self._pool.request("GET", url, headers=headers, preload_content=False)
        except self._errors as broken:
            raise _failure(broken) from broken
        if answer.status in (200, 206):
            return answer
        answer.close()
        if answer.status in _AGAIN:
            raise OSError(f"the server answered {answer.status} {answer.reason}")
        remedy = _REMEDIES.get(answer.status, "")
        raise StoreError(shown, f"the server answered {answer.status} {answer.reason}", remedy=remedy)


class HttpPlace:
    """A file, an index or a folder on a web server; see `places.RemotePlace`."""

    def __init__(self, url: str):
        self._url, self._shown = url, without_secrets(url)
        self._client = HttpClient(self._shown)

    def list(self) -> Mapping[str, RemoteItem]:
        """The files that the page of a folder links to, or the one that the address names; of an index, the files that
        it lists, too."""
        path = urlsplit(self._url).path
        if path.endswith("/"):
            names = _links_of(self._client.read_text(self._url, self._shown), self._url)
            if not names:
                remedy = "Name a file, or the index of a sharded checkpoint: '.../model.safetensors.index.json'."
                raise StoreError(self._shown, "the server gives no listing of the folder", remedy=remedy)
            return self._look_beside(names)
        own = unquote(path.rpartition("/")[2])
        found = {own: self._look(self._url)}
        if own.endswith(".index.json"):
            shards = _shards_in(self._client.read_text(self._url, self._shown))
            found |= self._look_beside(shards)
        return found

    def _look_beside(self, names: Sequence[str]) -> dict[str, RemoteItem]:
        """Files in the folder of the address. Servers are asked for many at a time: a model may have hundreds."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return dict(zip(names, pool.map(self._look, (urljoin(self._url, quote(n)) for n in names)), strict=True))

    def _look(self, url: str) -> RemoteItem:
        shown = without_secrets(url)
        return RemoteItem(url, shown, self._client.stamp(url, shown))

    def stamp(self, item: RemoteItem) -> Stamp:
        """The size and the version that a file has now."""
        return self._client.stamp(item.url, item.shown)

    def read_some(self, item: RemoteItem, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view`."""
        return self._client.read_some(item, view, offset)

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()


def _failure(broken: Exception) -> OSError:
    """An error of a connection, without the address, which may hold a signature."""
    reason = getattr(broken, "reason", None) or broken
    return OSError(f"the connection failed ({type(reason).__name__})")


def _size_of(answer: Any, shown: str) -> int:
    if answer.status == 200:
        if answer.headers.get("Content-Length") == "0":
            return 0
        raise StoreError(shown, "the server does not serve parts of files", remedy="Download the file first.")
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if not total.isdecimal():
        raise StoreError(shown, "the server does not say how large the file is", remedy="Download the file first.")
    return int(total)


def _version_of(answer: Any) -> str:
    headers = answer.headers
    return headers.get("X-Linked-ETag") or headers.get("ETag") or headers.get("Last-Modified") or ""


def _check_answer(answer: Any, item: RemoteItem, offset: int) -> None:
    """Raises StoreError for an answer that is another part than was asked for, or of another version of the file."""
    given = answer.headers.get("Content-Range", "")
    if answer.status != 206 or not given.removeprefix("bytes ").startswith(f"{offset}-"):
        raise StoreError(item.shown, "the server sent another part of the file", remedy="Download the file first.")
    if not given.endswith(f"/{item.stamp.size}"):
        raise changed(item)


def _shards_in(text: str) -> list[str]:
    """The files that an index names beside it; what is wrong with the index is said by who reads it."""
    try:
        listed = json.loads(text)["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return sorted({name for name in listed if isinstance(name, str) and _is_plain(name)})


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0?#:")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for key, value in attrs if key == "href" and value]


def _links_of(page: str, url: str) -> list[str]:
    """The names of the files that a page links to in its own folder."""
    parser = _Links()
    parser.feed(page)
    base = urlsplit(url)
    names = set()
    for link in parser.found:
        parts = urlsplit(urljoin(url, link))
        name = unquote(parts.path.removeprefix(base.path))
        inside = parts.netloc == base.netloc and parts.path.startswith(base.path)
        if inside and not parts.query and _is_plain(name):
            names.add(name)
    return sorted(names)
