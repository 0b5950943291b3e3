"""The lock of an output as a value, and as JSON: what it was made of, by what, and what came out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from functools import cache, partial
from importlib.metadata import version
from typing import IO, Any, NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.provenance.paths import written_paths
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.address import split_sum
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import LOCKFILE
from brainsurgery_jax.store.io.files import CHUNK
from brainsurgery_jax.version import __version__

KIND = "brainsurgery-jax lock"
SCHEMA_VERSION = 1
SUFFIX = ".lock.json"
"""Ends the name of the lock of an output that is a single file."""
DIGEST = "XXH3-128 of the XXH3-128 digests of pieces of 1048576 elements"
MOST_BYTES = 1 << 30


class LockedTensor(NamedTuple):
    """A tensor of an output or an input: shape and dtype as in `f32[2,3]`, and its digest in hexadecimal (None: its
    elements were not needed). Of an output also the tensors of inputs that it was made of, as `alias::name`, and the
    numbers of the steps. `kept`: a delta leaves it in its base."""

    aval: str
    digest: str | None = None
    inputs: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    kept: bool = False


class LockedFile(NamedTuple):
    """A file of an output: its bytes, and its SHA-256 in hexadecimal (None: a file of weights, without `--sha256`)."""

    nbytes: int
    sha256: str | None


class LockedInput(NamedTuple):
    """A checkpoint that was read: its path relative to the folder of the lock, and its tensors by name."""

    path: str
    tensors: Mapping[str, LockedTensor]


class Lock(NamedTuple):
    """What is known of an output. `output`: its path relative to the folder of the lock. `plan`: plain data, with paths
    relative to that folder, too."""

    versions: Mapping[str, str]
    plan: Mapping[str, Any]
    inputs: Mapping[str, LockedInput]
    output: str
    tensors: Mapping[str, LockedTensor]
    files: Mapping[str, LockedFile]

    @property
    def has_digests(self) -> bool:
        """Whether it says what the elements of the output are."""
        own = [tensor for tensor in self.tensors.values() if not tensor.kept] or self.tensors.values()
        return all(tensor.digest is not None for tensor in own)

    @property
    def number(self) -> int:
        """Which output of the plan it is of, from 0: as they are published, `save` steps first."""
        written = list(map(os.path.normpath, written_paths(self.plan)))
        own = os.path.normpath(self.output)
        return written.index(own) if own in written else 0

    def to_json(self) -> bytes:
        """The text of the lock file: the same for equal locks."""
        listed = {alias: {"path": i.path, "tensors": _tensors(i.tensors)} for alias, i in self.inputs.items()}
        files = {name: _present(file._asdict()) for name, file in self.files.items()}
        data = {
            "schema_version": SCHEMA_VERSION, "kind": KIND, "digest": DIGEST, "versions": dict(self.versions),
            "plan": self.plan, "inputs": listed,
            "output": {"path": self.output, "tensors": _tensors(self.tensors), "files": files},
        }  # fmt: skip
        return (_lines(data) + "\n").encode()


def _lines(value: Any, margin: str = "\n") -> str:
    """The JSON of plain data, a line for each tensor: what holds no mapping stays on its line."""
    entries = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(entry, dict) for entry in entries):
        return json.dumps(value)
    inner = margin + " "
    texts = [_lines(entry, inner) for entry in entries]
    if isinstance(value, list):
        return f"[{inner}{f',{inner}'.join(texts)}{margin}]"
    keyed = (f"{json.dumps(key)}: {text}" for key, text in zip(value, texts, strict=True))
    return f"{{{inner}{f',{inner}'.join(keyed)}{margin}}}"


def _tensors(tensors: Mapping[str, LockedTensor]) -> dict[str, object]:
    return {name: _present(tensor._asdict()) for name, tensor in tensors.items()}


def _present(fields: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in fields.items() if value is not None and value is not False and value != ()}


def lock_path(output: str, *, directory: bool) -> str:
    """Where the lock of an output is: in its folder, or beside its file."""
    return os.path.join(output, LOCKFILE) if directory else output + SUFFIX


def find_lock(path: str) -> str:
    """The lock that a path means: itself, or that of the output at the path; of `BASE + DELTA`, that of the delta."""
    place = os.path.expanduser((split_sum(path) or (path,))[-1])
    if os.path.isdir(place):
        return lock_path(place, directory=True)
    return place if place.endswith(".json") else lock_path(place, directory=False)


def is_lock(path: str) -> bool:
    """Whether a file is a lock, of this version or another."""
    try:
        with os_failures(path, "read the lock"):
            found = parse_json(read_regular(path, MOST_BYTES))
    except (StoreError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND


def read_lock(path: str) -> Lock:
    """The lock at a path, or of the output there. Raises StoreError for what is none."""
    place = find_lock(path)
    if not os.path.lexists(place):
        remedy = "Write one with the output: `brainsurgery-jax run PLAN --lock`."
        raise StoreError(path, f"has no lock: {place} does not exist", remedy=remedy)
    with os_failures(place, "read the lock"):
        text = read_regular(place, MOST_BYTES)
    try:
        return _lock_of(parse_json(text))
    except (ValueError, TypeError, KeyError, AttributeError) as bad:
        why = f"there is no {bad}" if isinstance(bad, KeyError) else str(bad)
        remedy = "Name a lock file, or an output that was written with `--lock`."
        raise StoreError(place, f"is no lock that this version reads: {why}", remedy=remedy) from bad


def read_complete(path: str) -> Lock:
    """The lock at a path, with the digests of the output. Raises StoreError also for one that has none."""
    lock = read_lock(path)
    if not lock.has_digests:
        remedy = "Write one with the output: `brainsurgery-jax run PLAN --lock`."
        raise StoreError(find_lock(path), "has no digests, and cannot tell results apart", remedy=remedy)
    return lock


def _lock_of(data: Any) -> Lock:
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ValueError(f"its `kind` is not '{KIND}'")
    if data["schema_version"] != SCHEMA_VERSION or data["digest"] != DIGEST:
        raise ValueError(f"its schema_version is {data['schema_version']!r}, and {SCHEMA_VERSION} is known")
    output, versions = data["output"], data["versions"]
    texts = (*versions.values(), output["path"], *(i["path"] for i in data["inputs"].values()))
    if not all(isinstance(text, str) for text in texts) or not isinstance(data["plan"], dict):
        raise ValueError("a version or a path is no text, or the plan is no mapping")
    inputs = {alias: LockedInput(i["path"], _read_tensors(i["tensors"])) for alias, i in data["inputs"].items()}
    files = {name: LockedFile(int(f["nbytes"]), f.get("sha256")) for name, f in output["files"].items()}
    return Lock(versions, data["plan"], inputs, output["path"], _read_tensors(output["tensors"]), files)


def _read_tensors(data: Mapping[str, Any]) -> dict[str, LockedTensor]:
    return {name: LockedTensor(str(t["aval"]), t.get("digest"), tuple(t.get("inputs", ())),
                               tuple(map(int, t.get("steps", ()))), t.get("kept") is True)
            for name, t in data.items()}  # fmt: skip


def sha256_of(file: IO[bytes]) -> str:
    """The SHA-256 of what a file holds from here on, in hexadecimal."""
    found = hashlib.sha256()
    for part in iter(partial(file.read, CHUNK), b""):
        found.update(part)
    return found.hexdigest()


# --- What differs -----------------------------------------------------------------------------------------------------

_PACKAGES = ("jax", "jaxlib", "numpy", "ml_dtypes", "scipy")


@cache
def _installed() -> dict[str, str]:
    return {package: version(package) for package in _PACKAGES}


def versions_of(backend: str) -> dict[str, str]:
    """What decides about bits beside the plan and its inputs: this program, the libraries, the backend."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    own = {"brainsurgery-jax": __version__, "python": python}
    return own | _installed() | {"backend": backend, "machine": platform.machine()}


def differing_versions(locked: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    """What differs, in words."""
    for name in dict.fromkeys((*locked, *found)):
        if locked.get(name) != found.get(name):
            yield f"{name} is {found.get(name, 'unknown')}, and was {locked.get(name, 'unknown')}"


def differing_tensors(locked: Mapping[str, LockedTensor], found: Mapping[str, LockedTensor]) -> Iterator[str]:
    """The tensors that differ, in words. A digest that one side lacks is not compared."""
    for name, was in locked.items():
        if (now := found.get(name)) is None:
            yield f"tensor '{name}' ({was.aval}) is missing"
        elif now.aval != was.aval:
            yield f"tensor '{name}' is {now.aval}, and was {was.aval}"
        elif now.kept != was.kept:
            places = "in the base", "in the delta"
            yield f"tensor '{name}' is {places[not now.kept]}, and was {places[now.kept]}"
        elif None not in (now.digest, was.digest) and now.digest != was.digest:
            yield f"tensor '{name}' ({was.aval}) has other elements"
    for name in found:
        if name not in locked:
            yield f"tensor '{name}' ({found[name].aval}) is new"
