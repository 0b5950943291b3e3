"""What the figures should be: the goals of every row, in one place, and the judgement of a measurement by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple, Protocol

Jobs = Mapping[str, Mapping[str, Any]]


class Verdict(NamedTuple):
    """A goal of a job in words, the figure that was found and its unit, and whether it meets the goal."""

    job: str
    goal: str
    found: float
    unit: str
    met: bool


def _at_most(job: str, goal: str, found: float, most: float, unit: str = "x", digits: int = 2) -> Verdict:
    return Verdict(job, f"≤ {goal}", round(found, digits), unit, found <= most)


class Goal(Protocol):
    """Something asked of a job."""

    @property
    def job(self) -> str: ...

    def judged(self, jobs: Jobs) -> Verdict: ...


@dataclass(frozen=True)
class Beside:
    """A job takes at most its start (`check` on the same plan, if it has one) and `times` what its peer takes."""

    job: str
    peer: str
    times: float
    start: str | None = "check"

    def judged(self, jobs: Jobs) -> Verdict:
        start = jobs[self.start]["wall_s"] if self.start else 0
        found = (jobs[self.job]["wall_s"] - start) / jobs[self.peer]["wall_s"]
        return _at_most(self.job, "start + " * bool(self.start) + f"{self.times:g} x ({self.peer})", found, self.times)


@dataclass(frozen=True)
class Faster:
    """A job is at least `times` as fast as its peer."""

    job: str
    peer: str
    times: float

    def judged(self, jobs: Jobs) -> Verdict:
        found = jobs[self.peer]["wall_s"] / jobs[self.job]["wall_s"]
        goal = f"≥ {self.times:g} x as fast as {self.peer}"
        return Verdict(self.job, goal, round(found, 1), "x", found >= self.times)


@dataclass(frozen=True)
class Seconds:
    """A job takes at most so long."""

    job: str
    most: float

    def judged(self, jobs: Jobs) -> Verdict:
        return _at_most(self.job, f"{self.most:g} s", jobs[self.job]["wall_s"], self.most, "s")


@dataclass(frozen=True)
class CpuSeconds:
    """A job takes at most so much processor time."""

    job: str
    most: float

    def judged(self, jobs: Jobs) -> Verdict:
        return _at_most(self.job, f"{self.most:g} s of processor time", jobs[self.job]["cpu_s"], self.most, "s")


@dataclass(frozen=True)
class Memory:
    """A job's peak of anonymous memory is at most so large; `over` names a job whose own is taken off first."""

    job: str
    most_mb: float
    over: str | None = None

    def judged(self, jobs: Jobs) -> Verdict:
        found = jobs[self.job]["anonymous_mb"] - (jobs[self.over]["anonymous_mb"] if self.over else 0)
        goal = f"{self.most_mb:g} MB" + " over start" * bool(self.over)
        return _at_most(self.job, goal, found, self.most_mb, "MB", 0)


@dataclass(frozen=True)
class Linear:
    """Over the jobs `JOB, SIZE`: at the largest size, time grows no faster than size to the power of `most`."""

    job: str
    most: float = 1.1

    def judged(self, jobs: Jobs) -> Verdict:
        before, last = family(self.job, jobs)[-2:]
        found = log(last["wall_s"] / before["wall_s"]) / log(last["moved_gb"] / before["moved_gb"])
        return _at_most(self.job, f"time as size to the power {self.most:g}", found, self.most, "")


@dataclass(frozen=True)
class Flat:
    """Over the jobs `JOB, SIZE`: memory at the largest size is at most `most` times that at the second smallest.

    The smallest has too few tensors to keep all threads busy.
    """

    job: str
    most: float = 1.25

    def judged(self, jobs: Jobs) -> Verdict:
        sizes = family(self.job, jobs)
        found = sizes[-1]["anonymous_mb"] / sizes[1]["anonymous_mb"]
        return _at_most(self.job, f"{self.most:g} x the memory", found, self.most)


def family(job: str, jobs: Jobs) -> list[Mapping[str, Any]]:
    """The figures of one job at several sizes, smallest first."""
    return [figures for name, figures in jobs.items() if name.rpartition(", ")[0] == job]


def _beside_both_copies(times: float, memory: Memory) -> list[Goal]:
    return [Beside("ours", "cp + sync", times), Beside("ours, no fsync", "cp", times), memory]


_MERGES = {"linear": 6, "slerp": 6, "ties": 20, "task_arithmetic": 6}

GOALS: Mapping[str, list[Goal]] = {
    "rename": _beside_both_copies(1.15, Memory("ours", 150, over="check")),
    "scale": _beside_both_copies(1.7, Memory("ours", 500)),
    "cast": _beside_both_copies(2, Memory("ours", 500)),
    "experts": _beside_both_copies(1.15, Memory("ours", 500)),
    "compare": [Beside("ours", "reading both", 1.5), Memory("ours", 500)],
    "compare_eps": [Beside("ours", "reading both", 1.5), Memory("ours", 500)],
    "inspect": [
        Seconds("inspect a model", 0.2),
        Seconds("inspect 300 tensors", 0.2),
        Seconds("inspect 20,000 tensors", 0.35),
        Seconds("help", 0.2),
    ],
    "merge": [
        *(
            Faster(job + more, f"mergekit, {job}", times)
            for job, times in _MERGES.items()
            for more in ("", ", no fsync")
        ),
        *(Memory(job, 700) for job in _MERGES),
    ],
    "phlora": [Faster("ours", "torch script", 6), Faster("ours, first run", "torch script", 3)],
    "rewrite": [Faster("ours", "torch script", 6)],
    "rewrite_llama": [Faster("ours", "torch script", 10), Memory("ours", 2000)],
    "check_20k": [Seconds("ours", 2)],
    "mixture": [CpuSeconds("listing", 1.5), CpuSeconds("check, 5 steps", 2)],
    "orbax": [
        *(Seconds(job, 5) for job in ("ours, to orbax", "ours, back")),  # 0.5 GB/s
        *(Memory(job, 300, over="check") for job in ("ours, to orbax", "ours, back")),
        Seconds("ours, listing", 0.4),
    ],
    "web": [
        Seconds("first page", 1),
        Seconds("spectrum", 2),
        *(
            Beside(f"statistics, {dtype}, cold file", f"reading, {dtype}, cold file", 3, start=None)
            for dtype in ("float32", "bfloat16")
        ),
        *(Memory(job, 500 + 300) for job in ("spectrum", "statistics, float32", "statistics, bfloat16")),
        Seconds("search", 0.3),
    ],
    "sweep": [goal for job in ("rename", "scale", "cast", "low rank") for goal in (Linear(job), Flat(job))],
}


def judge(row: str, jobs: Jobs) -> Iterator[Verdict]:
    """Each goal of a row, judged. Figures of jobs that a goal names must be there."""
    return (goal.judged(jobs) for goal in GOALS.get(row, []))
