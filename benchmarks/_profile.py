"""Where the time of a command goes: it is run once more, in a process that notes what each thread is at.

`profiled` starts that process; run as a script this file is that process. Functions of the engine, of the standard
library and of the operating system are wrapped where they are bound, so that nothing in the package knows of it. A
wrapped function owns its time less that of wrapped functions below it. Threads that wait for others own nothing, so
shares are of busy thread-seconds; only the wait for a module that another thread imports counts as importing.
"""

from __future__ import annotations

import builtins
import concurrent.futures
import importlib
import importlib.util
import json
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _jobs import Job

PACKAGE = "brainsurgery_jax"
OURS = {
    f"{PACKAGE}.api": {"load": "planning"},
    f"{PACKAGE}.lower": {"start": "planning", "lower": "planning"},
    f"{PACKAGE}.engine.compute.kernels": {
        "call_elementwise": "kernels",
        "call_in_pieces": "kernels",
        "call_block": "kernels",
    },
    f"{PACKAGE}.engine.compute.placement": {"call_placed": "whole calls"},
    f"{PACKAGE}.store.io.positioned": {"read_into": "reading", "write_all": "writing", "copy_range": "copying"},
}
"""Functions by module, and what their time is called. One that its module has not is an error."""

COMPUTED = {"kernels", "whole calls"}
"""Here JAX may hand back results that are still being made: their time belongs to the call."""

COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
"""JAX's own events, which follow one another: tracing, lowering, and compiling or loading what was compiled before."""

EVENTS = "jax.monitoring"
"""The module that tells of them."""

Function = Callable[..., Any]


def profiled(job: Job) -> dict[str, Any]:
    """Shares of the busy thread-seconds of one of our jobs, the largest first, and how many there were."""
    from _checkpoints import DATA
    from _jobs import COMMAND
    from _measure import measure

    job.prepare()
    result = DATA / "profile.json"
    arguments = job.command[len(COMMAND) :]
    run = measure([sys.executable, __file__, str(result), *arguments], env=job.environment, cwd=DATA)
    told = json.loads(result.read_text())
    seconds = {"start and exit": run.wall - told["wall_s"], **told["seconds"]}
    waited = seconds.pop("waiting", 0.0)
    busy = sum(seconds.values())
    shares = {what: round(s / busy, 3) for what, s in sorted(seconds.items(), key=lambda item: -item[1])}
    return {
        "wall_s": round(run.wall, 3), "busy_thread_s": round(busy, 3), "waiting_thread_s": round(waited, 3),
        "shares": {what: share for what, share in shares.items() if share >= 0.005},
    }  # fmt: skip


def is_whole(name: str) -> bool:
    """Whether a module that is imported has all its names, and so has its package: no thread still executes them."""
    package = name.partition(".")[0]
    return not any(getattr(sys.modules[each].__spec__, "_initializing", False) for each in (package, name))


class Clock:
    """Seconds by what they were spent on. Each thread has a stack of what it is at; the innermost owns the time."""

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        self._now = now
        self._threads: list[dict[str, float]] = []
        self._own = threading.local()

    def _state(self) -> tuple[dict[str, float], list[list[float]]]:
        if not hasattr(self._own, "state"):
            self._own.state = defaultdict(float), []
            self._threads.append(self._own.state[0])
        return self._own.state

    def within(self, what: str, function: Function, *arguments: Any, **keywords: Any) -> Any:
        """Call a function, its time noted as `what`."""
        seconds, stack = self._state()
        below = [0.0]
        stack.append(below)
        begun = self._now()
        try:
            return function(*arguments, **keywords)
        finally:
            spent = self._now() - begun
            stack.pop()
            seconds[what] += spent - below[0]
            if stack:
                stack[-1][0] += spent

    def charge(self, what: str, spent: float) -> None:
        """Note time that was measured elsewhere, and take it from what this thread is at."""
        seconds, stack = self._state()
        seconds[what] += spent
        if stack:
            stack[-1][0] += spent

    def seconds(self) -> dict[str, float]:
        """The sum over all threads."""
        total: dict[str, float] = defaultdict(float)
        for what, spent in (item for own in self._threads for item in own.items()):
            total[what] += spent
        return total


class Wrapper:
    """Wraps functions, those of modules that are not loaded yet as soon as they are."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._loaded = 0
        self._done: set[str] = set()
        self._import = threading.local()

    def install(self) -> None:
        """Wrap what belongs to Python and the system, and watch imports for what is ours."""
        for module, name, what in (
            (os, "fsync", "flushing"),
            (os, "posix_fallocate", "reserving"),
            (threading.Condition, "wait", "waiting"),
        ):
            setattr(module, name, self._timed(what, getattr(module, name)))
        pool = concurrent.futures.ThreadPoolExecutor
        submit = pool.submit
        pool.submit = lambda of, job, /, *a, **k: submit(of, self._timed("other in threads", job), *a, **k)
        builtins.__import__ = self._importing(builtins.__import__)
        importlib.import_module = self._importing(importlib.import_module)

    def _timed(self, what: str, function: Function) -> Function:
        @wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            return self._clock.within(what, function, *arguments, **keywords)

        return timed

    def _computing(self, what: str, function: Function) -> Function:
        @wraps(function)
        def computing(*arguments: Any, **keywords: Any) -> Any:
            result = function(*arguments, **keywords)
            return sys.modules["jax"].block_until_ready(result) if EVENTS in self._done else result

        return self._timed(what, computing)

    def _importing(self, function: Function) -> Function:
        """An import; the outermost of a thread looks for what is to be wrapped in the modules that came with it."""

        @wraps(function)
        def importing(*arguments: Any, **keywords: Any) -> Any:
            depth = getattr(self._import, "depth", 0)
            self._import.depth = depth + 1
            try:
                return self._clock.within("imports", function, *arguments, **keywords)
            finally:
                self._import.depth = depth
                if not depth and len(sys.modules) != self._loaded:
                    self._loaded = len(sys.modules) if self._wrap_loaded() else 0

        return importing

    def _wrap_loaded(self) -> bool:
        """Wrap what is imported, once; whether no module was left because another thread still imports it."""
        there = [name for name in (*OURS, EVENTS) if name in sys.modules and name not in self._done]
        whole = [name for name in there if is_whole(name)]
        self._done.update(whole)
        for name in whole:
            if name == EVENTS:
                sys.modules[name].register_event_duration_secs_listener(self._compiled)
            for function, what in OURS.get(name, {}).items():
                self._rebind(getattr(sys.modules[name], function), what)
        return whole == there

    def _rebind(self, function: Function, what: str) -> None:
        """Put a wrapper wherever a module of the package holds the function."""
        wrapped = (self._computing if what in COMPUTED else self._timed)(what, function)
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == PACKAGE:
                for key in [k for k, held in vars(module).items() if held is function]:
                    setattr(module, key, wrapped)

    def _compiled(self, event: str, spent: float, **_: Any) -> None:
        if event in COMPILING:
            self._clock.charge("compiling", spent)


def main() -> None:
    """Run our command with the arguments after the first, and write to that file what its time went to."""
    begun = perf_counter()
    result, sys.argv = Path(sys.argv[1]), [PACKAGE, *sys.argv[2:]]
    sys.path.pop(0)  # the folder of this file, whose names are not the command's
    clock = Clock()
    Wrapper(clock).install()
    code = clock.within("other", _command)
    told = {"wall_s": perf_counter() - begun, "seconds": clock.seconds()}
    for module in OURS:
        assert importlib.util.find_spec(module), f"{module} is no more: say in OURS where its functions are now"
    result.write_text(json.dumps(told))
    sys.exit(code)


def _command() -> Any:
    from brainsurgery_jax.cli.app import main as command

    try:
        command()
    except SystemExit as end:
        return end.code


if __name__ == "__main__":
    main()
