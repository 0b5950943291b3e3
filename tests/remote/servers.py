"""Servers on loopback: files by ranges with faults to order, and as much of the hub's interface as a listing needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Served:
    """What a server does, and what it was asked for."""

    root: Path
    url: str = ""
    break_after: int | None = None  # bytes of each answer before the connection breaks
    failures: list[int] = field(default_factory=list)  # statuses of the next answers
    ranges: bool = True
    token: str | None = None
    gated: bool = False
    sent: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    redirect_to: str | None = None
    lock: Any = field(default_factory=Lock)

    @property
    def sent_of_weights(self) -> int:
        return sum(count for name, count in self.sent.items() if name.endswith(".safetensors"))

    def find(self, path: str) -> Path | None:
        """The file that an address means; those of the hub lie below `ORG/MODEL/resolve/COMMIT/`."""
        name = re.sub(r"^/([^/]+/[^/]+)/resolve/[^/]+/", r"/\1/", unquote(path))
        place = self.root / name.lstrip("/")
        return place if place.exists() else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def do_GET(self) -> None:
        served, path = self.served, urlsplit(self.path).path
        with served.lock:
            served.asked.append((self.path, self.headers.get("Authorization", "")))
            failure = served.failures.pop(0) if served.failures else None
        if failure is not None:
            self._answer(failure, b"")
        elif served.token is not None and self.headers.get("Authorization") != f"Bearer {served.token}":
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/models/"):
            self._hub(path.removeprefix("/api/models/"))
        elif served.redirect_to is not None and "/resolve/" in path:
            self._answer(302, b"", {"Location": served.redirect_to + self.path})
        elif (place := served.find(path)) is None:
            self._answer(404, b"")
        elif place.is_dir():
            names = sorted(place.iterdir())
            links = "".join(f'<a href="{quote(p.name)}{"/" if p.is_dir() else ""}">x</a>' for p in names)
            self._answer(200, f'<a href="../">up</a><a href="http://elsewhere/x.safetensors">y</a>{links}'.encode())
        else:
            self._file(place)

    def _file(self, place: Path) -> None:
        content = place.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not self.served.ranges:
            self._answer(200, content, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        if not content:
            self._answer(200, b"", headers)
            return
        part = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        with self.served.lock:
            self.served.sent[place.name] = self.served.sent.get(place.name, 0) + len(part)
        self._answer(206, part, headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        most = self.served.break_after
        if most is not None and status == 206 and len(content) > most:
            self.wfile.write(content[:most])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(content)

    def _hub(self, path: str) -> None:
        organisation, model, *rest = path.split("/")
        place = self.served.root / organisation / model
        if not place.is_dir():
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif self.served.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif rest[:1] == ["tree"]:
            files = sorted(p for p in place.rglob("*") if p.is_file())
            self._json([_entry(p, place) for p in files])
        elif rest[:1] == ["revision"] and unquote(rest[1]) not in ("main", "v1", "refs/pr/1", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._json({"id": f"{organisation}/{model}", "sha": COMMIT, "siblings": []})

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def log_message(self, format: str, *args: object) -> None:
        pass


def _entry(path: Path, root: Path) -> dict[str, object]:
    content = path.read_bytes()
    name, digest = path.relative_to(root).as_posix(), hashlib.sha1(content).hexdigest()
    found: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": digest}
    if name.endswith(".safetensors"):
        whole = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": whole, "size": len(content), "pointerSize": 130}
    return found


@contextmanager
def serve(root: Path) -> Iterator[Served]:
    """A server of a folder on loopback."""
    served = Served(root)
    with listen(type("Handler", (_Handler,), {"served": served})) as served.url:
        yield served


@contextmanager
def listen(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on loopback, which answers by a handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
