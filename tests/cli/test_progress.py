"""What a run prints of its progress."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainsurgery_jax.cli.progress import Plain
from brainsurgery_jax.engine.events import Started, Wrote
from tests import checkpoints


def test_a_tensor_is_one_line_however_many_blocks_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Plain(quiet=False, verbose=True)
    plain(Started(96, 2, {"a": 64, "b": 32}))
    for name, nbytes in (("a", 32), ("b", 16), ("a", 32), ("b", 16)):
        plain(Wrote(name, nbytes))
    assert capsys.readouterr().err.splitlines() == ["2 tasks, 96 B to write", "a: 64 B", "b: 32 B"]


def test_verbose_prints_a_line_for_each_tensor_of_a_run(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "m.safetensors", {"w": np.ones(3_000_000, np.float32), "v": np.ones(2, np.float32)})
    (tmp_path / "plan.yaml").write_text(
        "inputs: [m.safetensors]\ntransforms: [scale_: {target: .*, by: 2}]\noutput: o.safetensors\n"
    )
    command = [sys.executable, "-m", "brainsurgery_jax", "plan.yaml", "-v"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("w:", "v:"))]
    assert sorted(lines) == ["v: 8 B", "w: 11.4 MB"]
