"""A question's answer: jobs measured side by side, judged by the goals, profiled, said as one JSON line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _checkpoints import DATA, SMALL, count, nbytes, shown
from _goals import judge
from _jobs import TOUCHED, Job, brainsurgery_job, check_job, clear, compile_package, copy_job, plan_job, script_job
from _machine import facts
from _measure import Run, alternate, say
from _profile import profiled

RECORDS = Path(os.environ.get("BENCH_DOCS", DATA if SMALL else Path(__file__).parents[1] / "docs"))
"""Where `performance.json` is, with what was measured before, and the page and pictures drawn from it."""

_SAME = ("cpu", "cores", "torch")
"""Facts about a machine that must agree for a peer's figure to be kept."""


def repetitions() -> int:
    """How often each job is measured."""
    return int(os.environ.get("BENCH_REPETITIONS", "3"))


def answer(row: str, question: str, jobs: Mapping[str, Job]) -> None:
    """Measure jobs in turn and say what they took, whether goals are met, and what time goes to."""
    measured, profiles = measure_all(row, jobs)
    conclude(row, question, measured, profiles)


def measure_all(row: str, jobs: Mapping[str, Job]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of each job in their order, and profiles of those of ours that are quick enough to run again.

    The memory that is touched before each is the same for all, and more than any of them writes.
    """
    compile_package()
    largest = max((nbytes(path) for job in jobs.values() for path in job.reads), default=0)
    jobs = {name: replace(job, touched=max(TOUCHED, largest * 5 // 4)) for name, job in jobs.items()}
    often = {name: job for name, job in jobs.items() if not job.once}
    found = {name: _figures(jobs[name], run) for name, run in alternate(often, repetitions()).items()}
    found |= {name: _kept(row, name, job) or _once(job) for name, job in jobs.items() if job.once}
    profiles = {name: profiled(job) for name, job in often.items() if job.kind == "ours"}
    clear()
    return {name: found[name] for name in jobs}, profiles


def conclude(row: str, question: str, jobs: dict[str, Any], profiles: dict[str, Any]) -> None:
    """Say the answer."""
    say(
        row=row, question=question, date=_today(), repetitions=repetitions(), small=SMALL, machine=facts(), jobs=jobs,
        goals=[v._asdict() for v in judge(row, jobs)], profiles=profiles,
    )  # fmt: skip


def _figures(job: Job, run: Run, **note: str) -> dict[str, Any]:
    return {
        "kind": job.kind, "wall_s": round(run.wall, 3), "cpu_s": round(run.cpu, 3),
        "anonymous_mb": round(run.anonymous / 1e6, 1), "moved_gb": round(run.moved / 1e9, 4),
        "gb_per_s": round(run.moved / 1e9 / run.wall, 2), **note,
    }  # fmt: skip


def _once(job: Job) -> dict[str, Any]:
    return _figures(job, job(), note=f"one run, {_today()}")


def _kept(row: str, name: str, job: Job) -> dict[str, Any] | None:
    """A slow peer's figure from an earlier day on a machine like this; BENCH_AGAIN measures it anew."""
    if job.kind != "peer" or os.environ.get("BENCH_AGAIN"):
        return None
    return earlier(row).get("jobs", {}).get(name)


def earlier(row: str) -> dict[str, Any]:
    """What was recorded of a row on a machine like this; empty if nothing was."""
    path = RECORDS / "performance.json"
    record = json.loads(path.read_text())["rows"].get(row, {}) if path.exists() else {}
    here, there = facts(), record.get("machine", {})
    same = all(here[fact] == there.get(fact) for fact in _SAME) and record.get("small") == SMALL
    return record if same else {}


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def beside_copies(plan: str, what: str, base: Path, *, copied: Path | None = None) -> None:
    """Answer how close a plan on one checkpoint is to copying that, or `copied`, which is as large as the output."""
    like = copied or base
    given = {"base": base, "tensors": count(base)}
    jobs = {
        "check": check_job(plan, **given),
        "cp": copy_job(like, sync=False),
        "ours, no fsync": plan_job(plan, ["--no-fsync"], **given),
        "cp + sync": copy_job(like, sync=True),
        "ours": plan_job(plan, **given),
        "torch script": script_job(plan, base),
        **brainsurgery_job(plan, **given),
    }
    answer(plan, f"{what}, {shown(nbytes(like))}", jobs)
