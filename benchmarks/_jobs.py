"""Jobs to measure: our command, and beside it `cp`, a script that does the same with torch, and other tools."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from _checkpoints import DATA, SMALL, files, nbytes
from _measure import Run, measure, touch_memory

HERE = Path(__file__).parent
PLANS = HERE / "plans"
COMMAND = (sys.executable, "-m", "brainsurgery_jax")
TOUCHED = (64 << 20) if SMALL else (5 << 30)
_OURS_ALONE = {"tol", "method", "alias"}
"""Keys that BrainSurgery does not know: it always factorizes exactly, and infers which alias is the output."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command. Of kind `ours` it is judged, of kind `start` it is what ours takes before it begins, else a peer.

    `reads` are the checkpoints that it reads. `first` gives it an empty compile cache. What is so slow that it is
    measured `once` has no warm-up either, and a peer's figure is kept for the next time.
    """

    kind: Literal["ours", "start", "peer"]
    command: tuple[str, ...]
    reads: tuple[Path, ...] = ()
    first: bool = False
    once: bool = False
    touched: int = TOUCHED

    def __call__(self) -> Run:
        """Run it as every other is run: no output there, nothing waiting for the disk, free memory at hand."""
        self.prepare()
        run = measure(self.command, env=self.environment, cwd=DATA)
        return run._replace(moved=sum(map(nbytes, (*self.reads, *DATA.glob("out*")))))

    @property
    def environment(self) -> dict[str, str]:
        """Our compile cache apart from the user's, and the package found though it is not installed."""
        cache = str(_cache(first=self.first))
        paths = filter(None, (os.environ.get("PYTHONPATH"), str(HERE.parent)))
        return {"JAX_COMPILATION_CACHE_DIR": cache, "XDG_CACHE_HOME": cache, "PYTHONPATH": os.pathsep.join(paths)}

    def prepare(self) -> None:
        """Remove outputs, flush, and touch memory."""
        clear()
        if self.first:
            shutil.rmtree(_cache(first=True), ignore_errors=True)
        DATA.mkdir(parents=True, exist_ok=True)
        subprocess.run(["sync"], check=True)
        touch_memory(self.touched)


def compile_package() -> None:
    """Compile our modules, as an installer does for packages: where PYTHONDONTWRITEBYTECODE is set, every command that
    is run from a checkout would compile them anew, for half a second."""
    compileall.compile_dir(HERE.parent / "brainsurgery_jax", quiet=1)


def clear() -> None:
    """Remove what jobs wrote."""
    for path in DATA.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _cache(*, first: bool) -> Path:
    return DATA / ("compiled-first" if first else "compiled")


def our_job(*arguments: str) -> Job:
    """Our command with any arguments."""
    return Job("ours", (*COMMAND, *arguments))


def plan_job(plan: str, options: Sequence[str] = (), *, first: bool = False, once: bool = False, **given: Any) -> Job:
    """Running a plan of `benchmarks/plans` as the command does. Variables that are paths are what it reads."""
    command = (*COMMAND, "run", "--quiet", str(PLANS / f"{plan}.yaml"), *_items(plan, given), *options)
    return Job("ours", command, _paths(given), first=first, once=once)


def check_job(plan: str, **given: Any) -> Job:
    """Checking the same plan: what a run takes before it has done anything."""
    return Job("start", (*COMMAND, "check", str(PLANS / f"{plan}.yaml"), *_items(plan, given)))


def _items(plan: str, given: dict[str, Any]) -> list[str]:
    """The variables of a plan; all but those that only compare write to `out`."""
    text = (PLANS / f"{plan}.yaml").read_text()
    return [f"vars.{k}={v}" for k, v in {"out": DATA / "out", **given}.items() if "${vars." + k + "}" in text]


def _paths(given: dict[str, Any]) -> tuple[Path, ...]:
    return tuple(value for value in given.values() if isinstance(value, Path))


def copy_job(source: Path, *, sync: bool) -> Job:
    """Copying a folder with `cp -r`, as a user would; with `sync`, until it is on the disk."""
    out = DATA / "out-copy"
    command = f"cp -r '{source}' '{out}'" + (f" && sync -f '{out}'" if sync else "")
    return Job("peer", ("sh", "-c", command), (source,))


def read_job(*sources: Path) -> Job:
    """Reading checkpoints and doing nothing with them."""
    return Job("peer", ("cat", *(str(file) for source in sources for file in files(source))), sources)


def script_job(script: str, *arguments: object, once: bool = False) -> Job:
    """Running an imperative script of `benchmarks/scripts`, which does the same, with torch where it computes."""
    command = (sys.executable, str(HERE / "scripts" / f"{script}.py"), *map(str, arguments), str(DATA / "out-script"))
    return Job("peer", command, tuple(a for a in arguments if isinstance(a, Path)), once=once)


def brainsurgery_job(plan: str, **given: Any) -> dict[str, Job]:
    """Running the same plan with BrainSurgery, where its command is installed, else nothing.

    It knows no variables, so the plan is written out with their values.
    """
    command = shutil.which("brainsurgery")
    if command is None:
        return {}
    data = yaml.safe_load((PLANS / f"{plan}.yaml").read_text())
    known = {**data.pop("vars", {}), "out": DATA / "out-brainsurgery", **given}
    path = DATA / f"brainsurgery-{plan}.yaml"
    path.write_text(yaml.safe_dump(_filled(data, {"${vars." + k + "}": v for k, v in known.items()}), sort_keys=False))
    return {"BrainSurgery": Job("peer", (command, str(path)), _paths(given))}


def _filled(value: Any, known: dict[str, Any]) -> Any:
    """Plain data with variables replaced: one that stands alone by its value, one within text by its text."""
    match value:
        case dict():
            return {k: _filled(v, known) for k, v in value.items() if k not in _OURS_ALONE}
        case list():
            return [_filled(v, known) for v in value]
        case str() if isinstance(known.get(value), int | float):
            return known[value]
        case str():
            for name, text in known.items():
                value = value.replace(name, str(text))
    return value
