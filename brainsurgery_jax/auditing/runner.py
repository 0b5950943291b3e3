"""Run a case on its stand-ins, and say what became of it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.api import Plan, run_with
from brainsurgery_jax.auditing.cases import Case
from brainsurgery_jax.auditing.world import StandInFiles
from brainsurgery_jax.errors import Diagnostic, PlanError, StoreError
from brainsurgery_jax.run_options import RunOptions


class Level(StrEnum):
    """How an error was seen: a mistake that `check` reports, an assert of the plan, an error of the run, or a note that
    the right plan does not have; or it was missed, or changed nothing."""

    CHECK = "check"
    ASSERT = "assert"
    RUN = "run"
    WARNED = "warned"
    MISSED = "missed"
    EQUIVALENT = "equivalent"


class TrialOutcome(NamedTuple):
    """What a run did. `level` None: it ended, and wrote what has this `digest`. `found`: the diagnostics that stopped
    it, or its notes. `steps`: the numbers of the steps that they name."""

    level: Level | None
    found: tuple[Diagnostic, ...] = ()
    digest: str = ""

    @property
    def steps(self) -> frozenset[int]:
        """The numbers of the steps that stopped it."""
        spans = (d.span.file for d in self.found if d.span is not None)
        return frozenset(int(m[1]) for m in map(_STEP.match, spans) if m)

    @property
    def message(self) -> str:
        """What it says first."""
        return self.found[0].message if self.found else ""


_STEP = re.compile(r"transforms\[(\d+)\]")
_ASSERT = re.compile(r"assert\b")


Look = Callable[[Mapping[str, Path]], None]


def try_case(case: Case, look: Look | None = None) -> TrialOutcome:
    """Check a case and run it in a temporary folder, which is removed. No file of the user is read or written.

    `look` is called with where the outputs are, by destination, before they are removed.
    """
    folder = Path(tempfile.mkdtemp(prefix="audit-"))
    try:
        return _try(case.plan(), case, folder, look)
    except PlanError as error:  # what is no plan at all
        return TrialOutcome(Level.CHECK, error.diagnostics)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try(plan: Plan, case: Case, folder: Path, look: Look | None) -> TrialOutcome:
    world = StandInFiles(case.stand_ins, folder)
    events: list[object] = []  # none before the plan has been found to be right
    try:
        options = RunOptions(durable=False, devices="cpu", memory=2 << 30, listen=events.append)
        report = run_with(plan, options, world)
    except PlanError as error:
        errors = tuple(d for d in error.diagnostics if d.severity == "error")
        return TrialOutcome(_level(errors, Level.RUN if events else Level.CHECK), errors)
    except StoreError as error:
        return TrialOutcome(Level.RUN, (Diagnostic(error.code or "io-input", str(error)),))
    if look is not None:
        look(world.redirect.places)
    digest = _digest(world.redirect.places) if report.published else _digest_texts(report.said)
    return TrialOutcome(None, report.notes, digest)


def _level(errors: Iterable[Diagnostic], otherwise: Level) -> Level:
    """An assert of the plan, if nothing else stopped it."""
    return Level.ASSERT if all(_ASSERT.match(d.message) for d in errors) else otherwise


def judge(outcome: TrialOutcome, right: TrialOutcome) -> Level:
    """How an error was seen, given the outcome of the right plan."""
    if outcome.level is not None:
        return outcome.level
    if outcome.digest == right.digest:
        return Level.EQUIVALENT
    more = Counter(d.code for d in outcome.found) - Counter(d.code for d in right.found)
    return Level.WARNED if more else Level.MISSED


def _digest(places: Mapping[str, Path]) -> str:
    """Of every file of every output, by its place there."""
    digest = blake2b(digest_size=16)
    for destination, place in sorted(places.items()):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                digest.update(f"{destination}\0{file.relative_to(place)}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest_texts(texts: Iterable[str]) -> str:
    return blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
