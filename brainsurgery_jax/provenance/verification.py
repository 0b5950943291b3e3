"""`bs.verify` and `bs.replay`: whether an output is what its lock says, and whether its plan makes it again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from brainsurgery_jax import api
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError, worded
from brainsurgery_jax.provenance.digests import locked_digests
from brainsurgery_jax.provenance.lock import Lock, LockedTensor, differing_tensors, find_lock, read_lock, sha256_of
from brainsurgery_jax.provenance.paths import hides_environment, is_save, locate, map_step_path
from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.store.address import split_sum
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.delta.manifest import read_manifest
from brainsurgery_jax.store.delta.source import open_alone
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import DELTA_MANIFEST
from brainsurgery_jax.world import Files


class Verification(NamedTuple):
    """What was compared with a lock: the path of the lock, that of the checkpoint, its number of tensors, and all
    differences in words; none if `ok`. `headers_only`: the lock has no digests, so that no element was compared."""

    lock: str
    path: str
    tensors: int
    differences: tuple[str, ...]
    headers_only: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def verify(path: str, *, at: str | None = None, inputs: bool = False, memory: int | str | None = None) -> Verification:
    """Check that an output is still what its lock says: names, shapes, dtypes, every element, side files. A lock
    without digests says nothing of elements. Of a delta, what it leaves in its base is read only for `BASE + DELTA`.

    **Arguments**: `path` is that of an output or of its lock, `at` that of the output, if it is not where the lock
    says. With `inputs` the checkpoints that it was made of are compared, too. `memory` is the budget, a number of bytes
    or a text such as "5GB" (default: a quarter of the available memory).
    **Returns** a `Verification` with all differences; each names its tensor or file.
    **Raises** StoreError for a lock or a checkpoint that cannot be read.
    **Example**:

    >>> bs.run(bs.load("plan.yaml"), overwrite=True, lock=True).published
    (('out.safetensors', 144, 3),)
    >>> bs.verify("out.safetensors").ok
    True
    """
    place = find_lock(path)
    lock, folder = read_lock(place), os.path.dirname(place)
    output = at or (path if split_sum(path) else locate(lock.output, folder))
    _, own = split_sum(output) or (None, output)
    if not os.path.lexists(own):
        given = worded(shell="`--at PATH`", python="`at=`")
        raise StoreError(own, f"is not there, where {place} says", remedy=f"Name its place by {given}.")
    tensors = lock.tensors if own == output else {n: t._replace(kept=False) for n, t in lock.tensors.items()}
    found = [*_differing_checkpoint(output, tensors, memory), *_differing_files(lock, own)]
    for alias, read in lock.inputs.items() if inputs else ():
        differing = _differing_checkpoint(locate(read.path, folder), read.tensors, memory)
        found += (f"input '{alias}': {text}" for text in differing)
    return Verification(place, output, len(lock.tensors), tuple(found), not lock.has_digests)


def _differing_checkpoint(path: str, locked: Mapping[str, LockedTensor], memory: int | str | None) -> Iterator[str]:
    source, kept = _open_output(path)
    with closing(source):
        found = {name: LockedTensor(str(info.aval)) for name, info in source.header.tensors.items()}
        found |= {name: LockedTensor(locked[name].aval if name in locked else "", kept=True) for name in kept}
        wanted = [n for n in source.header.tensors
                  if n in locked and locked[n].digest is not None and found[n].aval == locked[n].aval]  # fmt: skip
        digests = locked_digests(source, wanted, default_budget(host_bytes=memory))
    found |= {name: LockedTensor(locked[name].aval, digest.hex()) for name, digest in digests.items()}
    yield from differing_tensors(locked, found)


def _open_output(path: str) -> tuple[Source, tuple[str, ...]]:
    """What an output holds itself, and the names of the tensors that it leaves in its base, if it is a delta."""
    manifest = os.path.join(path, DELTA_MANIFEST)
    if not os.path.isfile(manifest):
        return open_source(path), ()
    return open_alone(path), tuple(name for name, own in read_manifest(manifest).tensors.items() if own is not None)


def _differing_files(lock: Lock, base: str) -> Iterator[str]:
    """How the files of an output differ, which is at `base`."""
    for name, file in lock.files.items():
        path = base if name == lock.output else os.path.join(base, name)
        if not os.path.lexists(path):
            yield f"file '{name}' is missing"
            continue
        with os_failures(path, "read the file"), open_regular(path) as opened:
            nbytes = os.fstat(opened.fileno()).st_size
            if nbytes != file.nbytes:
                yield f"file '{name}' has {nbytes:,} bytes, and had {file.nbytes:,}"
            elif file.sha256 is not None and sha256_of(opened) != file.sha256:
                yield f"file '{name}' has another SHA-256"


# --- Replay -----------------------------------------------------------------------------------------------------------


def replay(
    path: str,
    *,
    to: str | None = None,
    inputs: Mapping[str, str] | None = None,
    options: RunOptions | None = None,
) -> Verification:
    """Make an output again by its lock, and compare the two.

    **Arguments**: `path` is that of an output or of its lock. The new output is written to `to`, or beside the lock and
    removed again. `inputs`: paths of checkpoints by alias, for those that are not where the lock says. `options` are
    those of the run. If the lock has no digests, the new output is compared with the one that is there.
    **Returns** a `Verification`: what differs. Then nothing is written.
    **Raises** PlanError and StoreError for a plan that does not run.
    **Example**:

    >>> bs.run(bs.load("plan.yaml"), overwrite=True, lock=True).published
    (('out.safetensors', 144, 3),)
    >>> bs.replay("out.safetensors").ok
    True
    """
    place = find_lock(path)
    lock = read_lock(place)
    made = locate(lock.output, os.path.dirname(place)) if to is None else to
    folder = os.path.dirname(os.path.abspath(place))
    known = lock
    if not lock.has_digests:
        old, memory = locate(lock.output, folder), None if options is None else options.memory
        if differing := tuple(_differing_checkpoint(old, lock.tensors, memory)):
            return Verification(place, old, len(lock.tensors), differing)
        known = _with_digests(lock, old, memory)
    with _folder_aside(lock, folder, to) as aside:
        name = os.path.basename(lock.output) if lock.output in lock.files else "output"
        target = os.path.join(aside, name) if to is None else to
        plan = _plan_again(lock, inputs or {}, _Places(folder, aside, locate(lock.output, folder), target))
        expected = os.path.join(aside, "expected.json")
        Path(expected).write_bytes(known.to_json())
        chosen = replace(
            options or RunOptions(durable=to is not None), locked=expected, only=target, lock=to is not None
        )
        try:
            api.run_with(plan, chosen, Files(overwrite=chosen.overwrite))
        except PlanError as bad:
            if not all(d.code == "lock-differs" for d in bad.diagnostics):
                raise
            told = (d.message.removeprefix(f"{expected}: ") for d in bad.diagnostics)
            return Verification(place, made, len(lock.tensors), tuple(told))
    return Verification(place, made, len(lock.tensors), ())


def _with_digests(lock: Lock, output: str, memory: int | str | None) -> Lock:
    """A lock with the digests of its output as that is. What a delta leaves in its base has none."""
    source, _ = _open_output(output)
    with closing(source):
        found = locked_digests(source, list(source.header.tensors), default_budget(host_bytes=memory))
    digests = {name: digest.hex() for name, digest in found.items()}
    return lock._replace(tensors={n: t._replace(digest=digests.get(n)) for n, t in lock.tensors.items()})


@contextmanager
def _folder_aside(lock: Lock, folder: str, to: str | None) -> Iterator[str]:
    """A folder that goes, for an output that is made again without a place `to` keep it: beside the old one."""
    beside = os.path.dirname(locate(lock.output, folder))
    above = tempfile.gettempdir() if to is not None else beside if os.path.isdir(beside) else folder
    with os_failures(above, "create a folder for the replay"):
        aside = tempfile.mkdtemp(prefix=".brainsurgery-replay-", dir=above)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Places:
    """Where a plan of a lock in `folder` reads and writes when it is run again: the checkpoint `output` goes to
    `target`, what else it writes into the folder `aside`."""

    def __init__(self, folder: str, aside: str, output: str, target: str):
        self._folder, self._aside, self._output, self._target = folder, aside, output, target
        self._written: dict[str, str] = {}

    def read(self, path: str) -> str:
        """What the plan reads: what it wrote before, or what is here."""
        here = locate(path, self._folder)
        return self._written.get(here, here)

    def write(self, path: str) -> str:
        """The new place of what the plan writes."""
        here = locate(path, self._folder)
        other = os.path.join(self._aside, f"{len(self._written)}-{os.path.basename(here)}")
        return self._written.setdefault(here, self._target if here == self._output else other)


def _plan_again(lock: Lock, inputs: Mapping[str, str], places: _Places) -> api.Plan:
    """The plan of a lock, with its paths as they are here, that writes to another place."""
    plan: dict[str, Any] = dict(lock.plan)
    if unknown := [alias for alias in inputs if alias not in lock.inputs]:
        known = ", ".join(lock.inputs)
        raise PlanError([Diagnostic("alias-unknown", f"the lock has no input '{unknown[0]}', but: {known}")])
    if not hides_environment(plan.get("inputs")):
        plan["inputs"] = [_input_again(text, inputs, places.read) for text in plan.get("inputs", ())]
    changes = ((step, places.write if is_save(step) else places.read) for step in plan["transforms"])
    plan["transforms"] = [map_step_path(step, change) for step, change in changes]
    if "output" in plan:
        plan["output"] = _output_again(plan["output"], places.write)
    elif isinstance(outputs := plan.get("outputs"), list):
        plan["outputs"] = [_output_again(output, places.write) for output in outputs]
    return api.load(plan)


def _output_again(output: Any, write: Callable[[str], str]) -> Any:
    return {**output, "path": write(output["path"])} if isinstance(output, dict) else write(output)


def _input_again(text: str, inputs: Mapping[str, str], read: Callable[[str], str]) -> str:
    alias, _, path = text.partition("::")
    return f"{alias}::{inputs[alias] if alias in inputs else read(path)}"
