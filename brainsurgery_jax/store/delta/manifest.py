"""The manifest of a delta: which tensors it holds, which ones its base holds, and what the base looked like."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.base import Held, Source
from brainsurgery_jax.store.failures import os_failures

VERSION = 1
MOST_SAMPLES = 512
"""Tensors of the base of which the manifest holds a digest."""

SAMPLE = 256
"""Elements at each end of a tensor that its digest covers."""

_REMEDY = "Write the delta again."


class Manifest(NamedTuple):
    """What a delta says of itself.

    - `base`: the address that the base had when the delta was written, for messages
    - `types`: the digest of the shapes and dtypes of the tensors that the base holds
    - `tensors`: every tensor of the whole, in order: its name in the base, or None if the delta holds it
    - `samples`: digests of some tensors of the base, by their names there
    """

    base: str
    types: str
    tensors: Mapping[str, str | None]
    samples: Mapping[str, str]

    def encode(self) -> bytes:
        """The text of the manifest."""
        return json.dumps({"version": VERSION, **self._asdict()}, indent=1, ensure_ascii=False).encode()


def manifest_of(names: Sequence[str], kept: Mapping[str, Held]) -> Manifest:
    """The manifest of a delta whose whole has these names, of which the base holds `kept`: one at least."""
    source = next(iter(kept.values())).source
    own = list(dict.fromkeys(held.name for held in kept.values()))
    step = -(-len(own) // MOST_SAMPLES)
    samples = {name: sample(source, name) for name in own[::step]}
    tensors = {name: kept[name].name if name in kept else None for name in names}
    return Manifest(source.header.path, digest_types(source, own), tensors, samples)


def digest_types(source: Source, names: Iterable[str]) -> str:
    """A digest of the shapes and dtypes of some tensors; empty if one of them is not there."""
    from hashlib import blake2b  # few runs ask

    held, digest = source.header.tensors, blake2b(digest_size=16)
    for name in sorted(names):
        if name not in held:
            return ""
        digest.update(f"{name}\0{held[name].aval}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def sample(source: Source, name: str) -> str:
    """A digest of the first and the last elements of a tensor. A model that was trained on differs in them from its
    base, although their headers are equal."""
    from hashlib import blake2b  # few runs ask

    size = source.header.tensors[name].aval.size
    digest = blake2b(digest_size=8)
    digest.update(source.read_range(name, 0, min(SAMPLE, size)).tobytes())
    digest.update(source.read_range(name, max(0, size - SAMPLE), size).tobytes())
    return digest.hexdigest()


def read_manifest(path: str) -> Manifest:
    """The manifest in a file. Raises StoreError."""
    with os_failures(path, "read the manifest"):
        content = read_regular(path)
    try:
        found = parse_json(content)
    except ValueError as error:
        raise StoreError(path, f"is no JSON: {error}", remedy=_REMEDY) from error
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise StoreError(path, f"is no manifest of version {VERSION}", remedy=_REMEDY)
    base, types, tensors, samples = (found.get(key) for key in Manifest._fields)
    if not (
        isinstance(base, str) and isinstance(types, str) and isinstance(tensors, dict) and isinstance(samples, dict)
    ):
        raise StoreError(path, "is damaged", remedy=_REMEDY)
    if not all(own is None or isinstance(own, str) for own in (*tensors.values(), *samples)):
        raise StoreError(path, "is damaged", remedy=_REMEDY)
    return Manifest(base, types, tensors, samples)
