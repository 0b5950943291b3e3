"""The benchmark of edits that need a fact of a whole tensor, tiny: a row for each edit, with its goals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_edit_has_a_row_with_its_passes_and_its_memory() -> None:
    line = [sys.executable, str(ROOT / "benchmarks" / "folds.py"), "--size", "0.004", "--repetitions", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [(row[0], row[3]) for row in rows] == [
        ("| quantile trim, 20 %", "2"), ("| row norms", "1"), ("| clip by global norm", "2"),
        ("| the quantile alone", "1"), ("| the row norms alone", "1"), ("| the global norm alone", "1"),
    ]  # fmt: skip
    assert all("MB (goal 300 MB)" in row[-1] for row in rows)
