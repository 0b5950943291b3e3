"""Runs commands and calls in a process that the system kills as soon as it makes an internet socket, whoever asks for
it: Python, or the code of a library.

    python -m tests.supply.guarded commands|calls

The system is Linux on x86-64 or ARM. Elsewhere, Python's own sockets alone are watched.
"""

from __future__ import annotations

import ctypes
import io
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

SOCKET = {"x86_64": 41, "aarch64": 198}
"""The number of the system call `socket`."""

_INET, _INET6 = 2, 10
_KILL, _ALLOW = 0x8000_0000, 0x7FFF_0000
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


class _Step(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def forbid_internet() -> None:
    """From now on a socket of the internet kills this process (Linux), or raises AssertionError (elsewhere)."""
    if sys.platform == "linux" and (number := SOCKET.get(platform.machine())) is not None:
        load, is_equal, leave = 0x20, 0x15, 0x06
        rows = [
            (load, 0, 0, 0), (is_equal, 0, 4, number),  # the number of the call
            (load, 0, 0, 16), (is_equal, 1, 0, _INET), (is_equal, 0, 1, _INET6),  # its first argument
            (leave, 0, 0, _KILL), (leave, 0, 0, _ALLOW),
        ]  # fmt: skip
        steps = (_Step * len(rows))(*(_Step(*row) for row in rows))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
        assert libc.prctl(_SECCOMP, _FILTER, ctypes.byref(_Program(len(rows), steps)), 0, 0) == 0
    else:
        sys.addaudithook(_refuse)


def _refuse(event: str, given: tuple[object, ...]) -> None:
    assert event != "socket.__new__" or given[1] not in (_INET, _INET6), "an internet socket"


PLAN = """\
inputs: [base::base.safetensors]
transforms:
  - matmul: {from_a: w, from_b: w, to: p}
  - scale_: {target: w, by: 2}
  - dump: {target: w, verbosity: stat}
output: out.safetensors
"""
MERGE = "merge_method: linear\ndtype: float32\nmodels:\n  - {model: a, parameters: {weight: 1.0}}\n"
COMMANDS = {
    "run": "plan.yaml --lock", "verify": "out.safetensors", "replay": "out.safetensors",
    "repl": "base.safetensors --json", "check": "plan.yaml --overwrite",
    "explain": "plan.yaml --work",
    "audit": "plan.yaml", "inspect": "base.safetensors --stats", "diff": "base.safetensors out.safetensors",
    "compare-logits": "a a", "spectrum": "base.safetensors", "report": "base.safetensors --to page.html",
    "convert": "base.safetensors out.npz --layout none --verify", "layouts": "check flax", "ops": "copy",
    "recipes": "", "schema": "", "import-mergekit": "merge.yml", "demo": "",
}  # fmt: skip
"""Every command but `web`, with words that it works with."""


def prepare() -> None:
    """Write what the commands read into the current folder."""
    from tests.checkpoints import write

    write("base.safetensors", {"w": np.eye(4, dtype=np.float32), "v": np.ones(4, np.float32)})
    Path("plan.yaml").write_text(PLAN)
    Path("merge.yml").write_text(MERGE)
    Path("a").mkdir()
    write("a/model.safetensors", {"w": np.eye(4, dtype=np.float32)})


def run_commands() -> None:
    """Run every command, and print what each ended with."""
    from brainsurgery_jax.cli.app import main

    out = sys.stdout
    sys.stdin = io.StringIO('{"take": "delete: target: v"}\n{"leave": true}\n')
    for name, words in COMMANDS.items():
        sys.argv = ["brainsurgery-jax", name, *words.split()]
        sys.stdout, code = io.StringIO(), None
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        print(name, code or 0, file=out, flush=True)


def call_everything() -> None:
    """Call the functions of the Python API, with every format."""
    import brainsurgery_jax as bs

    plan = bs.load("plan.yaml")
    bs.check(plan)
    bs.explain(plan)
    plan.run()
    tree = {"a": np.ones((2, 3), np.float32)}
    for path in ("x.safetensors", "x.pt", "x.npz", "x.msgpack", "x.h5"):
        bs.save(path, tree)
        assert np.asarray(bs.open(path)["a"]).shape == (2, 3)
    for format in ("orbax", "dcp", "safetensors"):
        bs.save(f"{format}/", tree, format=format)
        assert np.asarray(bs.open(f"{format}/")["a"]).shape == (2, 3)
    bs.load({"transforms": [{"scale_": {"target": "a", "by": 2}}]}).apply(tree)
    print("called", flush=True)


if __name__ == "__main__":
    prepare()
    chosen: dict[str, Callable[[], None]] = {"commands": run_commands, "calls": call_everything}
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    forbid_internet()
    chosen[sys.argv[1]]()
