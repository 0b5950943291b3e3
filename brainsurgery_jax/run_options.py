"""How a run, a session or a conversion works: one value that is passed through all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError
from brainsurgery_jax.protocol import NO_FLAGS, Flags

if TYPE_CHECKING:
    from brainsurgery_jax.engine.compute.devices import Devices
    from brainsurgery_jax.engine.events import StopSignal
    from brainsurgery_jax.engine.run.budget import Budget
    from brainsurgery_jax.engine.run.joining import ProcessAddress
    from brainsurgery_jax.lower.program import Publication
    from brainsurgery_jax.store.io.files import StagedOutput


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run, not what: the same plan has the same result under all of them.

    - `memory`: budget, in bytes or as "5GB" (None: a quarter of the available memory)
    - `devices`: how many of the available accelerators to use ("cpu": none), or which (`engine.devices.Accelerators`)
    - `durable`: flush files to disk before publishing them
    - `overwrite`: outputs may replace existing files
    - `dry_run`: check, compute what asserts and reports need, and write nothing
    - `only`: the output at this path is published, and no other
    - `flags`: flags that are on from the start, as the op `set` turns them on
    - `listen`: called with the engine's events as they happen
    - `look`: called with each complete output before any is published; may raise
    - `lock`: write the lock of each output: what it was made of, and the digests of its tensors (a path: that of the
      only output there; None: of folders only, without digests; False: none)
    - `sha256`: with the SHA-256 of its files of weights in it
    - `locked`: the path of a lock that plan, inputs, versions and the output must agree with; of several outputs the
      paths of all their locks
    - `resume`: keep a journal, and go on with the run that was interrupted, if there is one
    - `hard_links`: files of outputs that an input holds as they stand may be hard links to these
    - `distributed`: which process of a run over several this is; all of them are started with the same plan
    - `stop`: a `threading.Event`, or anything with `is_set`; once it is set, the run raises `Stopped` between two items
    """

    memory: int | str | None = None
    devices: Devices = "all"
    durable: bool = True
    overwrite: bool = False
    dry_run: bool = False
    only: str | None = None
    flags: Flags = NO_FLAGS
    listen: Callable[[Any], None] | None = None
    look: Callable[[StagedOutput], None] | None = None
    lock: bool | str | os.PathLike[str] | None = None
    sha256: bool = False
    locked: str | Sequence[str] | None = None
    resume: bool = False
    hard_links: bool = False
    distributed: ProcessAddress | None = None
    stop: StopSignal | None = None

    @property
    def lock_path(self) -> str | None:
        """The path that the lock of the only output was asked for at."""
        return None if self.lock is None or isinstance(self.lock, bool) else os.path.expanduser(self.lock)

    def budget(self) -> Budget:
        """What the engine may use."""
        from brainsurgery_jax.engine.run.budget import default_budget

        return default_budget(host_bytes=self.memory, durable=self.durable, devices=self.devices)


class RunKeywords(TypedDict, total=False):
    """The fields of `RunOptions` as keywords, for the public verbs."""

    memory: int | str | None
    devices: Devices
    durable: bool
    overwrite: bool
    dry_run: bool
    only: str | None
    flags: Flags
    listen: Callable[[Any], None] | None
    look: Callable[[StagedOutput], None] | None
    lock: bool | str | os.PathLike[str] | None
    sha256: bool
    locked: str | Sequence[str] | None
    resume: bool
    hard_links: bool
    distributed: ProcessAddress | None
    stop: StopSignal | None


def choose_publications(planned: Sequence[Publication], options: RunOptions) -> tuple[Publication, ...]:
    """What is published, as the options of a run say. Raises PlanError."""
    made = tuple(p._replace(overwrite=True) for p in planned) if options.overwrite else tuple(planned)
    if options.only is not None:
        made = _choose_one(made, options.only)
    return () if options.dry_run else made


def _choose_one(publications: Sequence[Publication], path: str) -> tuple[Publication, ...]:
    """The publication at a path. Raises PlanError if there is none: a run that writes nothing would not be noticed."""
    found = tuple(p for p in publications if p.path == path)
    if not found:
        places = ", ".join(p.path for p in publications) or "nowhere"
        raise PlanError([Diagnostic("io-output", f"only={path!r}: the plan does not write there, but to: {places}")])
    return found


def refuse_links(options: RunOptions) -> None:
    """Raises StoreError for a run that links to inputs, and would go on with its outputs, or share them."""
    if options.hard_links and (options.resume or options.distributed is not None):
        other = "--resume" if options.resume else "--distributed"
        problem = f"cannot be combined with {other}, which writes to files that are there, and these would be inputs"
        raise StoreError("--hard-links", problem, remedy="Run without one of the two.")
