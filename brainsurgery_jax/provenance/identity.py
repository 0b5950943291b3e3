"""What must be the same for a run that goes on where another was interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from hashlib import blake2b

from brainsurgery_jax.engine.compute.devices import Devices
from brainsurgery_jax.engine.plan.schedule import exprs_of, roots_of
from brainsurgery_jax.engine.run.execute import choose_accelerators
from brainsurgery_jax.lower.program import Program
from brainsurgery_jax.plan.model import PlanData
from brainsurgery_jax.plan.resolved import resolve
from brainsurgery_jax.plan.source import Map, plain
from brainsurgery_jax.provenance.lock import versions_of
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.replacing import resolve as resolve_path


def identity_of(
    data: PlanData,
    document: Map | None,
    program: Program,
    sources: Iterable[Source],
    ops: Iterable[str],
    devices: Devices,
    *,
    shared: bool = False,
) -> dict[str, str]:
    """Digests of the plan, with the files of the user's `ops`, its inputs, its outputs, and of the versions. `shared`:
    as other hosts see them too, which number disks and files in their own way."""
    said = resolve(data, [step.text for step in data.steps]) if document is None else plain(document)
    code = [_content(path) for path in ops]
    read = [(_stamps(s, shared=shared), s.fingerprint.header) for s in sources]
    outputs = [
        (resolve_path(p.path), p.directory, p.format.name, p.shard_bytes, dict(p.metadata), dict(p.options),
         [(name, str(e.aval)) for name, e in p.tensors.items()])
        for p in program.publications
    ]  # fmt: skip
    versions = versions_of(choose_accelerators(exprs_of(roots_of(program)), devices).backend)
    found = {"plan": (said, code), "inputs": read, "outputs": outputs, "versions": versions}
    return {kind: _digest(value) for kind, value in found.items()}


def _stamps(source: Source, *, shared: bool) -> list[tuple[str, object]]:
    stamps = sorted(source.fingerprint.stamps.items())
    return [(os.path.basename(name), stamp.size) for name, stamp in stamps] if shared else list(stamps)


def _content(path: str) -> str:
    with os_failures(path, "read the file"):
        return read_regular(path).hex()


def _digest(value: object) -> str:
    return blake2b(json.dumps(value, default=repr).encode(), digest_size=16).hexdigest()
