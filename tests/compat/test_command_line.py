"""Interfaces 1: the command line of the reference, as scripts use it: exit codes, streams, files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from tests.checkpoints import counting
from tests.cli.conftest import environment
from tests.compat.row import expect, lay_out, read

W = counting((4, 6))
PLAN = """
inputs: [base::model.safetensors]
transforms:
  - dump: { target: w }
  - move: { from: w, to: v }
output: out.safetensors
"""


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def command(*words: str) -> Answer:
    """`brainsurgery-jax` with these words, in a folder with a tensor and a plan that prints and renames it."""
    lay_out({"w": W}, {"plan.yaml": PLAN})
    line = [sys.executable, "-m", "brainsurgery_jax", *words]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, encoding="utf-8")
    return Answer(done.returncode, done.stdout, done.stderr)


def test_a_plan_alone_is_run_and_what_its_steps_print_goes_to_stdout(here: Path):
    done = command("plan.yaml")
    assert (done.code, done.out) == (0, "└── w  shape=[4, 6]\n")
    expect(read("out.safetensors"), {"v": W})


def test_the_summary_comes_after_what_the_steps_print(here: Path):
    done = command("plan.yaml", "--summarize")
    first, rest = done.out.split("\n", 1)
    assert first == "└── w  shape=[4, 6]"
    assert yaml.safe_load(rest) == {"transforms": [{"dump": {"target": "w"}}, {"move": {"from": "w", "to": "v"}}]}


def test_the_summary_goes_to_a_file_whose_folder_is_made(here: Path):
    done = command("plan.yaml", "--summarize-path", "logs/new/ran.yaml", "--summary-mode", "resolve")
    assert (done.code, done.out) == (0, "└── w  shape=[4, 6]\n")
    assert list(yaml.safe_load(Path("logs/new/ran.yaml").read_text())) == ["inputs", "transforms", "output"]


def test_a_failed_assert_is_1_without_output_or_summary(here: Path):
    done = command("plan.yaml", "transforms[2].assert.exists=w", "--summarize-path", "ran.yaml")
    assert (done.code, done.out) == (1, "")
    assert "no tensor matches" in done.err
    assert not Path("out.safetensors").exists()
    assert not Path("ran.yaml").exists()


def test_a_dry_run_that_the_plan_turns_on_writes_no_summary_file(here: Path):
    done = command("plan.yaml", "transforms[2].set.dry-run=true", "--summarize-path", "ran.yaml")
    assert done.code == 0
    assert not Path("ran.yaml").exists()
    assert not Path("out.safetensors").exists()


def test_overrides_are_merged_into_the_plan(here: Path):
    assert command("plan.yaml", "output=other.safetensors", "transforms[1].move.to=n").code == 0
    expect(read("other.safetensors"), {"n": W})


def test_options_of_the_reference_are_taken_wherever_they_stand(here: Path):
    words = ("--provider", "arena", "plan.yaml", "--arena-root=x", "--arena-segment-size", "1GB", "--num-workers", "2",
             "--log-level=debug", "--no-summarize", "--shard-size", "1GB")  # fmt: skip
    assert command(*words).code == 0
    expect(read("out.safetensors"), {"v": W})


@pytest.mark.parametrize(
    "words", [["plan.yaml", "--frobnicate"], ["plan.yaml", "--shard-size", "5 bananas"],
              ["plan.yaml", "--summary-mode", "long"]], ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_2(here: Path, words: list[str]):
    assert command(*words).code == 2
    assert not Path("out.safetensors").exists()


def test_the_default_shard_size_is_for_folders_alone(here: Path):
    copy = "transforms[2].copy={from: v, to: u}"
    assert command("plan.yaml", "output=parts", copy, "--shard-size", "96B").code == 0
    assert Path("parts/model-00002-of-00002.safetensors").exists()
    assert command("plan.yaml", "--shard-size", "96B").code == 0
    assert np.array_equal(read("out.safetensors")["v"], W)
