"""A hub on loopback that is written to: repositories with branches and commits, and a store of large files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.remote.servers import listen

LARGE = (".safetensors", ".npz", ".msgpack")
"""The files that go to the store of large ones; the others are part of the commit."""

Files = Mapping[str, bytes]


@dataclass
class Hub:
    """What it holds, what it was asked for, and what goes wrong: `failures` are statuses of the next requests whose
    address holds a word, `before` is called when such a request comes, `lose` answers to such are never sent."""

    token: str = "hf_secret"
    url: str = ""
    repositories: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # branch: commits, newest last
    commits: dict[str, Files] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    lose: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)  # tokens that may read alone
    forgets: str = ""  # a file that commits lack
    lock: Any = field(default_factory=Lock)

    def commit(self, repository: str, files: Files, branch: str = "main") -> str:
        """Makes a commit with these files alone."""
        branches = self.repositories.setdefault(repository, {})
        commits = branches.setdefault(branch, [])
        number = f"{repository} {branch} {len(commits)}"
        name = hashlib.sha1(number.encode()).hexdigest()
        self.commits[name] = dict(files)
        commits.append(name)
        return name

    def files(self, repository: str, branch: str = "main") -> Files:
        """What the newest commit of a branch holds."""
        return self.commits[self.repositories[repository][branch][-1]]

    def count(self, word: str) -> int:
        """How many requests had a word in their method and address."""
        return sum(word in request for request in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        length = int(self.headers.get("Content-Length", 0))
        if len(body := self.rfile.read(length)) < length:
            return  # who sent it is dead
        with hub.lock:
            hub.asked.append(request)
            found = [word for word in hub.failures if word in request and hub.failures[word]]
            failure = hub.failures[found[0]].pop(0) if found else None
            calls = [hub.before.pop(word) for word in [*hub.before] if word in request]
        for call in calls:
            call()
        if failure is not None:
            self._answer({}, failure)
            return
        with hub.lock:
            value, status, headers = self._find(path, body)
        if any(word in request for word in hub.lose):
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self._answer(value, status, headers)

    def _find(self, path: str, body: bytes) -> tuple[Any, int, dict[str, str]]:
        """What is answered to a request: a value or bytes, a status, headers."""
        hub = self.hub
        if (large := re.fullmatch(r"/large/(\w+)", path)) and self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == large[1]
            hub.large[large[1]] = body
            return {}, 200, {}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}, 200, {}
        parts = re.fullmatch(r"(/api/models)?/([^/]+/[^/]+?)(\.git|)(?:/(\w+)(?:/(.*))?)?", path)
        if parts is None or parts[2] not in hub.repositories:
            return {}, 404, {"X-Error-Code": "RepoNotFound"}
        if self.command == "POST" and token != hub.token:
            return {}, 403 if token in hub.readers else 401, {}
        branches, what, rest = hub.repositories[parts[2]], parts[4] or "revision", parts[5] or "main"
        match what:
            case "refs":
                shown = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c[-1]} for n, c in branches.items()]
                return {"branches": shown, "tags": [], "converts": []}, 200, {}
            case "revision" | "tree":
                commit = branches[rest][-1] if rest in branches else rest
                if commit not in hub.commits:
                    return {}, 404, {"X-Error-Code": "RevisionNotFound"}
                listed = [_entry(name, content) for name, content in hub.commits[commit].items()]
                return (listed if what == "tree" else {"id": parts[2], "sha": commit, "siblings": []}), 200, {}
            case "resolve":
                commit, _, name = rest.partition("/")
                return self._range(hub.commits[commit][name])
            case "preupload":
                return _preupload(json.loads(body), hub.files(parts[2], rest)), 200, {}
            case "info":
                return self._batch(json.loads(body)), 200, {}
            case "commit":
                return self._commit(parts[2], rest, [json.loads(line) for line in body.splitlines()])
        raise AssertionError(path)

    def _range(self, content: bytes) -> tuple[bytes, int, dict[str, str]]:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not content:
            return content, 200, {}
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        return content[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(content)}"}

    def _batch(self, asked: Any) -> object:
        """Where each large file is sent that is not there."""
        objects = []
        for item in asked["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/large/{item['oid']}"}}
            objects.append(item | ({} if item["oid"] in self.hub.large else {"actions": upload}))
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repository: str, branch: str, lines: list[Any]) -> tuple[Any, int, dict[str, str]]:
        hub = self.hub
        head = hub.repositories[repository][branch][-1]
        if lines[0]["value"].get("parentCommit", head) != head:
            return {"error": "the branch has moved"}, 412, {}
        files = dict(hub.commits[head])
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        files.pop(hub.forgets, None)
        made = hub.commit(repository, files, branch)
        return {"commitUrl": f"{hub.url}/{repository}/commit/{made}", "commitOid": made}, 200, {}

    def _answer(self, value: Any, status: int, headers: Mapping[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _preupload(asked: Any, there: Files) -> object:
    """How each file is uploaded, and what is there by its name. A `.gitignore` of the repository leaves out all, unless
    another one is sent."""
    ignored = asked.get("gitIgnore") is None and ".gitignore" in there
    entries = {name: _entry(name, content) for name, content in there.items()}
    return {
        "files": [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(LARGE) else "regular",
                "shouldIgnore": ignored,
                "oid": _hash_of(entries[item["path"]]) if item["path"] in entries else None,
            }
            for item in asked["files"]
        ]
    }


def _entry(name: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git}
    if name.endswith(LARGE):
        whole = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": whole, "size": len(content), "pointerSize": 130}
    return found


def _hash_of(entry: Mapping[str, Any]) -> str:
    return entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """An empty hub on loopback."""
    hub = Hub()
    with listen(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub
