"""Which inputs and steps made a tensor: by the lock of an output, or by a plan and the headers of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

from brainsurgery_jax import api
from brainsurgery_jax.documents import Entry, Record, Text
from brainsurgery_jax.errors import Diagnostic, PlanError, did_you_mean
from brainsurgery_jax.graph.expr import walk
from brainsurgery_jax.lower import lower, start
from brainsurgery_jax.lower.origins import Origins
from brainsurgery_jax.plan.source import flow_yaml
from brainsurgery_jax.provenance.lock import Lock, read_lock
from brainsurgery_jax.world import Files


class Blame(NamedTuple):
    """How a tensor came about: its name, its shape and dtype, the tensors of inputs that it was made of, as
    `alias::name`, and the steps, each with its number in the plan and its text as plain data."""

    name: str
    aval: str
    inputs: tuple[str, ...]
    steps: tuple[tuple[int, Any], ...]


def blame(path: str, name: str) -> Blame:
    """Tell which inputs and steps made a tensor of an output, by its lock. No checkpoint is read.

    **Arguments**: `path` is that of an output or of its lock, `name` that of a tensor in it.
    **Returns** a `Blame`.
    **Raises** StoreError for a lock that cannot be read, PlanError for a tensor that is not in it.
    **Example**:

    >>> bs.run(bs.load("plan.yaml"), overwrite=True, lock=True).published
    (('out.safetensors', 144, 3),)
    >>> bs.blame("out.safetensors", "layers.0.w").inputs
    ('model::layers.0.w',)
    """
    lock = read_lock(path)
    if name not in lock.tensors:
        raise _no_tensor(path, name, list(lock.tensors))
    found = lock.tensors[name]
    return Blame(name, found.aval, found.inputs, tuple((number, _step(lock, number)) for number in found.steps))


def _step(lock: Lock, number: int) -> Any:
    steps = lock.plan.get("transforms", ())
    return steps[number] if number < len(steps) else {}


def explain_tensor(plan: api.Plan, name: str, world: Files | None = None) -> Blame:
    """Tell which inputs and steps make a tensor of the output of a plan, from headers alone. Raises PlanError."""
    origins = Origins()
    with closing(world or Files(overwrite=True)) as files:
        files.also_reads(*plan.files)
        program = lower(start(plan.data, files), plan.data, files, watch=origins)
        if errors := (*plan.errors, *program.errors):
            raise PlanError(errors)
        aliases = {id(files.open(i.path)): i.alias for i in plan.data.inputs}
    names = [known for p in program.publications for known in p.tensors]
    e = next((p.tensors[name] for p in program.publications if name in p.tensors), None)
    if e is None:
        raise _no_tensor("the output", name, names)
    leaves = (leaf for leaf in walk([e]) if leaf.is_leaf)
    inputs = tuple(f"{aliases.get(id(leaf.source), leaf.source.header.path)}::{leaf.name}" for leaf in leaves)
    steps = tuple((number, plan.data.steps[number].summary) for number in origins.steps_of(name, e))
    return Blame(name, str(e.aval), inputs, steps)


def _no_tensor(where: str, name: str, known: Sequence[str]) -> PlanError:
    near = did_you_mean(name, known)
    return PlanError([Diagnostic("no-match", f"{where}: no tensor is called '{name}' ({len(known):,} tensors).{near}")])


def report_blame(found: Blame) -> Record:
    """A chain of inputs and steps, in the order of the plan."""
    made = [Text(f"  step {number + 1}  {_line(step)}") for number, step in found.steps]
    steps = [{"step": number + 1, "text": step} for number, step in found.steps]
    return Record((
        Entry("name", found.name, Text(f"{found.name}  {found.aval}")),
        Entry("aval", found.aval),
        Entry("inputs", list(found.inputs)),
        *(Entry("", None, Text(f"  input   {name}")) for name in found.inputs),
        Entry("steps", steps),
        *(Entry("", None, text) for text in made),
    ))  # fmt: skip


def _line(step: Any) -> str:
    return flow_yaml(step)
