"""`bs.verify` and `bs.replay`: whether an output is what its lock says, and whether its plan makes it again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from brainsurgery_jax import api
from brainsurgery_jax.engine.run.budget import default_budget
from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError
from brainsurgery_jax.provenance.digests import locked_digests
from brainsurgery_jax.provenance.lock import Lock, LockedTensor, differing_tensors, find_lock, read_lock, sha256_of
from brainsurgery_jax.provenance.paths import hides_environment, locate, map_step_path
from brainsurgery_jax.regular_files import open_regular
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.world import Files


class Verification(NamedTuple):
    """What was compared with a lock: the path of the lock, that of the checkpoint, its number of tensors, and all
    differences in words; none if `ok`."""

    lock: str
    path: str
    tensors: int
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def verify(path: str, *, inputs: bool = False, memory: int | None = None) -> Verification:
    """Check that an output is still what its lock says: names, shapes, dtypes, every element, side files.

    **Arguments**: `path` is that of an output or of its lock. With `inputs` the checkpoints that it was made of are
    compared, too. `memory` is the budget in bytes (default: a quarter of the available memory).
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
    output = locate(lock.output, folder)
    found = [*_differing_checkpoint(output, lock.tensors, memory), *_differing_files(lock, folder)]
    for alias, read in lock.inputs.items() if inputs else ():
        differing = _differing_checkpoint(locate(read.path, folder), read.tensors, memory)
        found += (f"input '{alias}': {text}" for text in differing)
    return Verification(place, output, len(lock.tensors), tuple(found))


def _differing_checkpoint(path: str, locked: Mapping[str, LockedTensor], memory: int | None) -> Iterator[str]:
    with closing(open_source(path)) as source:
        found = {name: LockedTensor(str(info.aval)) for name, info in source.header.tensors.items()}
        wanted = [n for n, t in locked.items() if t.digest is not None and n in found and found[n].aval == t.aval]
        digests = locked_digests(source, wanted, default_budget(host_bytes=memory))
    found |= {name: LockedTensor(locked[name].aval, digest.hex()) for name, digest in digests.items()}
    yield from differing_tensors(locked, found)


def _differing_files(lock: Lock, folder: str) -> Iterator[str]:
    base = locate(lock.output, folder)
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
    those of the run.
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
    with _destination(lock, os.path.dirname(os.path.abspath(place)), to) as target:
        plan = _plan_again(place, lock, inputs or {}, target)
        chosen = replace(options or RunOptions(durable=to is not None), locked=place, only=target, lock=to is not None)
        try:
            api.run_with(plan, chosen, Files(overwrite=chosen.overwrite))
        except PlanError as bad:
            if not all(d.code == "lock-differs" for d in bad.diagnostics):
                raise
            told = (d.message.removeprefix(f"{place}: ") for d in bad.diagnostics)
            return Verification(place, made, len(lock.tensors), tuple(told))
    return Verification(place, made, len(lock.tensors), ())


@contextmanager
def _destination(lock: Lock, folder: str, to: str | None) -> Iterator[str]:
    """Where an output is made again: at `to`, or in a folder that goes."""
    if to is not None:
        yield to
        return
    above = os.path.dirname(folder) if lock.output == "." else folder
    with os_failures(above, "create a folder for the replay"):
        aside = tempfile.mkdtemp(prefix=".brainsurgery-replay-", dir=above)
    try:
        yield os.path.join(aside, "output" if lock.output == "." else os.path.basename(lock.output))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _plan_again(place: str, lock: Lock, inputs: Mapping[str, str], target: str) -> api.Plan:
    """The plan of a lock, with its paths as they are here, that writes to another place."""
    plan: dict[str, Any] = dict(lock.plan)
    own = partial(locate, folder=os.path.dirname(os.path.abspath(place)))
    if unknown := [alias for alias in inputs if alias not in lock.inputs]:
        known = ", ".join(lock.inputs)
        raise PlanError([Diagnostic("alias-unknown", f"the lock has no input '{unknown[0]}', but: {known}")])
    if not hides_environment(plan.get("inputs")):
        plan["inputs"] = [_input_again(text, inputs, own) for text in plan.get("inputs", ())]
    plan["transforms"] = [map_step_path(step, own) for step in plan["transforms"]]
    if "outputs" in plan or any("save" in step for step in plan["transforms"]):
        raise StoreError(place, "its plan writes several checkpoints, and only a plan with one is made again")
    output = plan.get("output")
    plan["output"] = {**output, "path": target} if isinstance(output, dict) else target
    return api.load(plan)


def _input_again(text: str, inputs: Mapping[str, str], own: Any) -> str:
    alias, _, path = text.partition("::")
    return f"{alias}::{inputs[alias] if alias in inputs else own(path)}"
