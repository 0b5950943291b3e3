"""One job, ours and its peers side by side in one run: the shape that every benchmark of a plan shares."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from _checkpoints import Shapes, gpt2, llama, write
from _measure import Run, alternate, measure, say

DATA = Path(os.environ.get("BENCH_DATA", Path(tempfile.gettempdir()) / "brainsurgery-bench"))
PLANS = Path(__file__).parent / "plans"
TOUCHED = 5 << 30
COMMAND = [sys.executable, "-m", "brainsurgery_jax"]


def checkpoint(model: str, *, tuned: bool = False) -> Path:
    """The checkpoint of a model (`gpt2`: 0.5 GB, float32; `llama`: 2.5 GB, bfloat16), made once."""
    shapes: Shapes = {"gpt2": gpt2, "llama": llama}[model]()
    dtype = {"gpt2": "float32", "llama": "bfloat16"}[model]
    return write(DATA / (model + "-tuned" * tuned), shapes, dtype, tuned=0.05 if tuned else 0.0)


def plan_job(plan: str, options: Sequence[str] = (), **variables: object) -> Callable[[], Run]:
    """Running a plan of `benchmarks/plans` as the command does, to a destination that is not there yet."""
    items = [f"vars.{key}={value}" for key, value in _used(plan, variables).items()]
    return _fresh([*COMMAND, "run", "--quiet", str(PLANS / f"{plan}.yaml"), *items, *options])


def check_job(plan: str, **variables: object) -> Callable[[], Run]:
    """Checking the same plan: what a run takes before it has done anything."""
    items = [f"vars.{key}={value}" for key, value in _used(plan, variables).items()]
    return _fresh([*COMMAND, "check", str(PLANS / f"{plan}.yaml"), *items])


def _used(plan: str, variables: Mapping[str, object]) -> dict[str, object]:
    """The variables of a plan; all but those that only compare write to `out`."""
    text = (PLANS / f"{plan}.yaml").read_text()
    return {k: v for k, v in {"out": DATA / "out", **variables}.items() if "${vars." + k + "}" in text}


def copy_job(source: Path, *, sync: bool) -> Callable[[], Run]:
    """Copying a folder with `cp -r`, as a user would; with `sync`, until it is on the disk."""
    out = DATA / "out-copy"
    return _fresh(["sh", "-c", f"cp -r '{source}' '{out}'" + (f" && sync -f '{out}'" if sync else "")])


def read_job(*sources: Path) -> Callable[[], Run]:
    """Reading folders and doing nothing with them."""
    return _fresh(["sh", "-c", " && ".join(f"cat '{s}'/*.safetensors > /dev/null" for s in sources)])


def script_job(script: str, *arguments: object) -> Callable[[], Run]:
    """Running an imperative script of `benchmarks/scripts`, which does the same with torch."""
    out = DATA / "out-script"
    path = Path(__file__).parent / "scripts" / f"{script}.py"
    return _fresh([sys.executable, str(path), *map(str, arguments), str(out)])


def _fresh(command: Sequence[str]) -> Callable[[], Run]:
    """A job that begins like every other: no output there, nothing waiting for the disk, free memory at hand.

    On a virtual machine, memory that was freed is given back to the host, and the next to touch it pays for it anew,
    several seconds for a few gigabytes. Touching it first takes that out of every measurement alike.
    """

    def job() -> Run:
        for path in DATA.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        subprocess.run(["sync"], check=True)
        touched = np.empty(TOUCHED, np.uint8)
        touched[:: 1 << 12] = 1
        del touched
        return measure(command)

    return job


def compare(question: str, jobs: Mapping[str, Callable[[], Run]], *, against: Mapping[str, str]) -> None:
    """Run the jobs in turn and print one JSON line: medians, and the ratio of each job to its peer.

    `against` maps a job to its peer. The time of `check` is start-up: it is taken off before the ratio to a copy.
    """
    repetitions = int(os.environ.get("BENCH_REPETITIONS", "3"))
    medians = alternate(dict(jobs), repetitions)
    start = medians["check"].wall if "check" in medians else 0.0
    ratios = {job: round((medians[job].wall - start) / medians[peer].wall, 2) for job, peer in against.items()}
    rows = {name: _row(run) for name, run in medians.items()}
    say(question=question, repetitions=repetitions, jobs=rows, ratio_less_start=ratios)


def _row(run: Run) -> dict[str, float]:
    return {"wall_s": round(run.wall, 2), "cpu_s": round(run.cpu, 2), "anonymous_mb": run.anonymous >> 20}
