"""The command as a process of its own: what counts is its exit code, its two streams, and what it imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.checkpoints import write

ROOT = Path(__file__).parents[2]
PLAN = """\
inputs: [base::base.safetensors]
transforms:
  - move: {from: 'h\\.(\\d)\\.w', to: 'layer.\\1.w'}
  - assert: {exists: 'layer\\.0\\.w'}
output: out.safetensors
"""


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "JAX_PLATFORMS": "cpu"} | more


@pytest.fixture
def place(here: Path) -> Path:
    """A working directory with a checkpoint of three tensors and a plan that renames two of them."""
    write("base.safetensors", {"h.0.w": np.ones((2, 3), np.float32), "h.1.w": np.zeros((2, 3), np.float32),
                               "ids": np.arange(4)})  # fmt: skip
    (here / "plan.yaml").write_text(PLAN, encoding="utf-8")
    return here


@pytest.fixture
def command(place: Path) -> Command:
    """Runs `brainsurgery-jax` with these words in `place`."""

    def run(*words: str, **env: str) -> Answer:
        line = [sys.executable, "-m", "brainsurgery_jax", *words]
        done = subprocess.run(line, cwd=place, env=environment(**env), capture_output=True, text=True, encoding="utf-8")
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def loaded(place: Path) -> Callable[..., set[str]]:
    """The modules that a command has loaded at its end, of those worth waiting for; `backend` where JAX started one."""
    code = """
import sys
from brainsurgery_jax.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
names = ("jax", "numpy", "yaml", "pydantic", "torch", "prompt_toolkit", "brainsurgery_jax.ops")
heavy = [m for m in names if m in sys.modules]
bridge = sys.modules.get("jax._src.xla_bridge")
print("LOADED", *heavy, *(["backend"] if bridge is not None and bridge._backends else []))
"""

    def run(*words: str) -> set[str]:
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=place, env=environment(), capture_output=True,
                              text=True, encoding="utf-8", check=True)  # fmt: skip
        return set(done.stdout.rpartition("LOADED")[2].split())

    return run
