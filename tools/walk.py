"""Print the functions that a program passes from `execute` to the last byte: `python tools/walk.py [--all]`.

A small plan that copies, scales, reorders and checks is run under a profiler on one thread. A *stay* is a function of
the package that is passed the program or a piece of its work, as an argument, an element of one, or in a closure: a
value of a type of `engine/` or of `lower/program.py`. Printed are the stays in `engine/` in the order of first entry,
with the number of calls, and with `--all` every function of `engine/` and `store/` (`+` marks a stay); then counts.
Properties and comprehensions are left out. To measure another commit, run this file with a worktree of that commit in
PYTHONPATH.

`engine, in _run`: the part of the walk that performs the work, after the budget has been checked.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import brainsurgery_jax as bs

PACKAGE = "brainsurgery_jax"
START = f"{PACKAGE}.engine.run.execute", "execute"
PERFORM = f"{PACKAGE}.engine.run.execute", "_run"
"""What performs the work, once it is known whether it fits."""
CARRIERS = f"{PACKAGE}.engine.", f"{PACKAGE}.lower.program"
SERVICES = frozenset({"Budget", "Machine", "Cost"})
"""Values that describe what a run may use, not what it does."""

PLAN = {
    "inputs": ["base::base.safetensors"],
    "transforms": [
        {"move": {"from": r"copied\.(.+)", "to": r"moved.\1"}},
        {"scale_": {"target": "scaled", "by": 0.5}},
        {"permute": {"from": "reordered", "to": "transposed", "order": [1, 0]}},
        {"assert": {"finite": "scaled"}},
    ],
    "output": "out/",
}


class Walk:
    """Calls by (module, function), in the order of first entry, while `execute` runs."""

    def __init__(self) -> None:
        self.calls = Counter[tuple[str, str]]()
        self.stays: set[tuple[str, str]] = set()
        self.performing: set[tuple[str, str]] = set()
        self._running = self._performing = False
        self._lock = threading.Lock()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """Record a call. The profile function of each thread."""
        if event not in ("call", "return"):
            return
        module, function = str(frame.f_globals.get("__name__", "")), frame.f_code.co_qualname.replace(".<locals>", "")
        if (module, function) == START:
            self._running = event == "call"
        if (module, function) == PERFORM:
            self._performing = event == "call"
        if event == "call" and self._running and module.startswith(PACKAGE) and is_written(frame, function):
            with self._lock:
                self.calls[module, function] += 1
                if self._performing:
                    self.performing.add((module, function))
                if any(map(is_carrier, arguments(frame))):
                    self.stays.add((module, function))


def is_written(frame: FrameType, function: str) -> bool:
    """Whether a call is of a function that stands in the source: no comprehension, generated method or property."""
    if function.endswith(">") or function.startswith("__create_fn__"):
        return False
    owner, _, name = function.rpartition(".")
    found = getattr(frame.f_globals.get(owner), name, None) if owner else None
    return not isinstance(found, property | cached_property)


def arguments(frame: FrameType) -> Iterator[Any]:
    """The arguments of a call and what its closure holds, and the elements of those that are lists or tuples."""
    code = frame.f_code
    for name in (*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], *code.co_freevars):
        value = frame.f_locals.get(name)
        yield value
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            yield from value


def is_carrier(value: Any) -> bool:
    """Whether a value is the program or a piece of its work."""
    kind = type(value)
    frozen = isinstance(value, tuple) or hasattr(kind, "__dataclass_fields__")
    return frozen and kind.__module__.startswith(CARRIERS) and kind.__name__ not in SERVICES


def trace() -> Walk:
    """Run the plan in a temporary folder, on one thread."""
    walk, before = Walk(), Path.cwd()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            names = ("copied.w", "scaled", "reordered")
            save_file({name: np.ones((8, 4), np.float32) for name in names}, "base.safetensors")
            plan = bs.load(PLAN)
            plan.check()
            threading.setprofile(walk.profile)
            sys.setprofile(walk.profile)
            try:
                plan.run(durable=False)
            finally:
                sys.setprofile(None)
                threading.setprofile(None)
        finally:
            os.chdir(before)
    return walk


def show(walk: Walk, part: str, *, every: bool) -> Iterator[str]:
    """The stays of one part of the package, or every function, a line each, and their number."""
    found = [key for key in walk.calls if key[0].startswith(f"{PACKAGE}.{part}.")]
    for key in found:
        if every or key in walk.stays:
            mark = "+" if key in walk.stays else " "
            yield f"{mark} {key[0].removeprefix(f'{PACKAGE}.')}:{key[1]} {walk.calls[key]}"
    yield summary(part, found, walk)


def summary(part: str, found: Iterable[tuple[str, str]], walk: Walk) -> str:
    """How many functions in how many modules, and how many of them are stays."""
    entered = set(found)
    stays = entered & walk.stays
    modules, rooms = len({m for m, _ in entered}), len({m for m, _ in stays})
    return f"{part}: {len(entered)} functions in {modules} modules, {len(stays)} stays in {rooms}"


def main() -> None:
    """Print the walk."""
    walk = trace()
    for part in ("engine", "store"):
        print(*show(walk, part, every="--all" in sys.argv), sep="\n")
    engine = [key for key in walk.performing if key[0].startswith(f"{PACKAGE}.engine.")]
    print(summary("engine, in _run", engine, walk))
    print(summary("all", walk.calls, walk))


if __name__ == "__main__":
    main()
