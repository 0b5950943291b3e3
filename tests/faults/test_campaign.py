"""A short form of the campaign, and that it would notice what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write
from tests.cli.conftest import environment
from tests.faults.world import JOBS, After, prepare, state


@pytest.mark.parametrize("job", ["one file, overwriting"])
def test_whatever_happens_to_a_run_its_outputs_are_whole(here: Path, job: str) -> None:
    line = [sys.executable, "-m", "tests.faults.campaign", "--kills", "0", "--every", "97", "--jobs", job]
    done = subprocess.run(line, cwd=Path(__file__).parents[2], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [row for row in done.stdout.splitlines() if job in row]
    assert len(rows) >= 9
    assert all(row.endswith(" 0 |") for row in rows)


@pytest.fixture
def job(here: Path) -> str:
    prepare(JOBS["one file, new"], here / "run")
    return "one file, new"


def test_states_are_told_apart(job: str) -> None:
    assert state("out.safetensors") == "absent"
    write("out.safetensors", {"w": np.ones(2, np.float32)})
    assert state("out.safetensors") == "broken: other values"
    Path("out.safetensors").write_bytes(b"{")
    assert state("out.safetensors").startswith("broken: ")


@pytest.mark.parametrize(
    ("after", "wrong"),
    [
        (After(0, "", ("absent",), 1), "exit code 0, but not all outputs are new"),
        (After(3, "", ("broken: half",), 1), "out.safetensors is broken: half"),
        (After(70, "defect", ("absent",), 1), "exit code 70: defect"),
        (After(None, "", ("absent",), 1), "it hung"),
        (After(3, "Traceback (most", ("absent",), 1), "a traceback: Traceback (most"),
    ],
)
def test_a_fault_is_noticed(job: str, after: After, wrong: str) -> None:
    line = (
        f"import sys; from tests.faults.world import *; job = JOBS[{job!r}]; print(faults_of(job, {after!r}, digest()))"
    )
    done = subprocess.run([sys.executable, "-c", line], env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == repr([wrong]), done.stderr


def test_a_source_that_was_changed_is_noticed(job: str) -> None:
    line = f"from tests.faults.world import *; print(faults_of(JOBS[{job!r}], After(3, '', ('absent',), 1), 'other'))"
    done = subprocess.run([sys.executable, "-c", line], env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "['the source was changed']", done.stderr
    assert os.path.exists("out.safetensors")  # the second run


def test_the_destination_is_safe_in_every_case_of_the_protocol() -> None:
    line = [sys.executable, "-m", "tests.faults.protocol"]
    done = subprocess.run(line, cwd=Path(__file__).parents[2], env=environment(), capture_output=True, text=True)
    rows = [row for row in done.stdout.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 19
    assert [row for row in rows if not row.endswith("| yes |")] == []
    assert done.returncode == 0, done.stderr
