"""A small world for faults: jobs with a source and destinations, runs in forked processes, and what must hold then.

A shim around the functions of `os` that touch files counts the calls of a run, and does something at one of them: it
raises an error, kills the process, or changes a source. It needs no tools and no rights.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import brainsurgery_jax as bs
from brainsurgery_jax.cli import app
from brainsurgery_jax.errors import StoreError
from tests.checkpoints import write

Act = Callable[[], None]
"""What is done in the process of a run before it begins, or at one of its calls."""

CALLS = (
    *("open", "close", "stat", "lstat", "fstat", "listdir", "scandir", "access", "mkdir", "rmdir", "remove", "unlink"),
    *("rename", "replace", "chmod", "fsync", "ftruncate", "truncate", "pread", "preadv", "pwrite", "pwritev"),
    *("posix_fallocate", "copy_file_range", "sendfile"),
)

PATIENCE = 60.0  # seconds after which a run counts as hanging


class Job(NamedTuple):
    """A plan: its outputs as paths with a format, and whether they replace something."""

    name: str
    outputs: tuple[tuple[str, str], ...]
    overwrite: bool = False
    more: str = ""

    @property
    def plan(self) -> str:
        """The text of the plan."""
        lines = [f"  - {{path: {path}, format: {kind}, overwrite: true{self.more}}}" for path, kind in self.outputs]
        steps = "transforms: [{scale_: {target: 'w.*', by: 2}}]"
        return "\n".join([f"inputs: [source]\n{steps}\noutputs:", *lines, ""])


_KINDS = {
    "one file": ((("out.safetensors", "safetensors"),), ""),
    "shards": ((("out", "safetensors"),), ", shard: 300B"),
    "torch": ((("out.pt", "torch"),), ""),
    "orbax": ((("out", "orbax"),), ""),
    "two outputs": ((("out.safetensors", "safetensors"), ("other.npz", "npz")), ""),
}
JOBS = {
    f"{kind}, {'overwriting' if overwrite else 'new'}": Job(kind, outputs, overwrite, more)
    for kind, (outputs, more) in _KINDS.items()
    for overwrite in (False, True)
}

State = str
"""What stands at a destination: `absent`, `old`, `new`, `other` (made of another source), or what is wrong."""

OTHER = 3
"""The factor of the tensors of another source."""


class After(NamedTuple):
    """What a run left: its exit code (None: hung, negative: the signal), its words, the state of each destination."""

    code: int | None
    err: str
    states: tuple[State, ...]
    calls: int


def prepare(job: Job, place: Path) -> None:
    """Make the source, the plan, and what the outputs replace, in an empty folder."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "source").mkdir(parents=True)
    os.chdir(place)
    write("source/model.safetensors", tensors(1))
    Path("source/config.json").write_text("{}")
    Path("plan.yaml").write_text(job.plan)
    if job.overwrite:
        write("old.safetensors", tensors(7))
        Path("old.yaml").write_text(job.plan.replace("inputs: [source]", "inputs: [old.safetensors]"))
        apart(lambda: bs.load("old.yaml").run())
        os.remove("old.safetensors")
        os.remove("old.yaml")


def tensors(factor: int) -> dict[str, np.ndarray]:
    return {f"w{i}": np.full((8, 4 + i), factor * (i + 1), np.float32) for i in range(6)} | {
        "ids": np.arange(5, dtype=np.int64) * factor
    }


def state(path: str) -> State:
    """What stands at a destination."""
    if not os.path.lexists(path):
        return "absent"
    try:
        found = bs.open(path)
        values = {name: np.asarray(found[name]) for name in found}
    except (StoreError, OSError, ValueError) as error:
        return f"broken: {error}".replace("\n", " ")
    for factor, word in ((1, "new"), (7, "old"), (OTHER, "other")):
        wanted = {name: v * (2 if name != "ids" else 1) for name, v in tensors(factor).items()}
        if wanted.keys() == values.keys() and all(np.array_equal(wanted[n], values[n]) for n in wanted):
            return word
    return "broken: other values"


def apart(work: Callable[[], object]) -> str:
    """The text of what a forked process finds. This one stays without the threads of libraries, which no fork takes."""
    reader, writer = os.pipe()
    if (process := os.fork()) == 0:
        try:
            os.write(writer, str(work()).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        found = file.read().decode()
    os.waitpid(process, 0)
    return found


def states_of(job: Job) -> tuple[State, ...]:
    """What stands at the destinations of a job."""
    return tuple(apart(lambda: "\n".join(state(path) for path, _ in job.outputs)).split("\n"))


def digest(folder: str = "source") -> str:
    """A digest of all files in a folder."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        found.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


# --- Runs -------------------------------------------------------------------------------------------------------------


def begin(before: Act = lambda: None, at: int | None = None, act: Act = lambda: None) -> int:
    """Start a run of plan.yaml in a forked process, and return its id. At the call of number `at`, `act` is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with open(f"../err-{os.getpid()}", "wb") as err, open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        sys.argv = ["brainsurgery-jax", "plan.yaml"]
        before()
        count = _shim(at, act)
        try:
            app.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        sys.stderr.flush()
        os.write(2, f"\ncalls: {count()}\n".encode())
    finally:
        os._exit(code)


def _shim(at: int | None, act: Act) -> Callable[[], int]:
    """Count the calls of `os`, and act at one; returns what tells their number."""
    done = 0

    def wrap(was: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **more: object) -> object:
            nonlocal done
            done += 1
            if done == at:
                act()
            return was(*given, **more)

        return call

    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, wrap(getattr(os, name)))
    return lambda: done


def end(process: int, job: Job, kill_after: float | None = None) -> After:
    """Wait for a run, or kill it after so many seconds, and look at what it left."""
    until, number = time.monotonic() + (PATIENCE if kill_after is None else kill_after), 0
    status: int | None = None
    while True:
        found, number = os.waitpid(process, os.WNOHANG)
        if found:
            status = os.waitstatus_to_exitcode(number)
            break
        if time.monotonic() >= until:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            status = None if kill_after is None else -signal.SIGKILL
            break
        time.sleep(0.0005)
    text = Path(f"../err-{process}").read_text(errors="replace") if Path(f"../err-{process}").exists() else ""
    Path(f"../err-{process}").unlink(missing_ok=True)
    said, _, calls = text.rpartition("\ncalls: ")
    return After(status, said or text, states_of(job), int(calls or 0) if said else 0)


def fail(code: int) -> Act:
    """An act that raises a system error."""

    def act() -> None:
        raise OSError(code, os.strerror(code))

    return act


def kill() -> None:
    """An act that ends the process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


# --- What must hold ---------------------------------------------------------------------------------------------------


def faults_of(job: Job, after: After, source: str) -> list[str]:
    """What is wrong after a run that something happened to, and after the run that repeats it; empty if nothing."""
    # A source that is replaced before it is opened is just another source.
    whole = ("new", "other", "old" if job.overwrite else "absent")
    wrong = [f"{path} is {s}" for (path, _), s in zip(job.outputs, after.states, strict=True) if s not in whole]
    if after.code is None:
        wrong.append("it hung")
    elif after.code not in (0, 1, 3, 130, 143, -signal.SIGKILL):
        wrong.append(f"exit code {after.code}: {after.err[-300:]}")
    if after.code == 0 and set(after.states) not in ({"new"}, {"other"}):
        wrong.append("exit code 0, but not all outputs are new")
    if "Traceback" in after.err:
        wrong.append(f"a traceback: {after.err[-300:]}")
    if digest() != source:
        wrong.append("the source was changed")
    again = end(begin(), job)
    if again.code != 0 or set(again.states) != {"new"}:
        wrong.append(f"a second run ends with {again.code}, {again.states}: {again.err[-300:]}")
    if left := [n for n in os.listdir() if n.startswith(".")]:
        wrong.append(f"left after the second run: {left}")
    return wrong
