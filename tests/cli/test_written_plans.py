"""Plans and summaries that a command writes replace nothing but plans, and leave the bytes of other names alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.plan.written import refuse_other_files, write_plan
from tests.cli.conftest import Command

PLAN = "transforms:\n  - delete: {target: w}\n"


@pytest.fixture
def other(place: Path) -> Path:
    """A checkpoint that the run does not read."""
    save_file({"w": np.ones(3, np.float32)}, place / "other.safetensors")
    return place / "other.safetensors"


def test_a_summary_is_not_written_over_a_checkpoint_that_the_run_does_not_read(command: Command, other: Path):
    done = command("plan.yaml", "--summarize-path", "other.safetensors")
    assert done.code == 3
    assert "is no plan, and a plan replaces nothing else" in done.err
    assert load_file(other)["w"].tolist() == [1, 1, 1]
    assert not (other.parent / "out.safetensors").exists()


@pytest.mark.parametrize("path", ["out.safetensors", "sub/../out.safetensors"])
def test_a_summary_is_not_written_over_the_output_of_its_run(command: Command, place: Path, path: str):
    done = command("plan.yaml", "--summarize-path", path)
    assert done.code == 2
    assert "is an output of this run" in done.err
    assert not (place / "out.safetensors").exists()


def test_a_summary_over_a_file_that_the_run_has_just_published_is_printed(command: Command, place: Path):
    done = command("plan.yaml", "output=parts/", "--summarize-path", "parts/model.safetensors")
    assert done.code == 3
    assert "so it was printed: is no plan" in done.err
    assert "transforms:" in done.out
    assert load_file(place / "parts/model.safetensors")


def test_a_summary_that_replaces_a_plan_leaves_its_hard_link(command: Command, place: Path):
    (place / "old.yaml").write_text(PLAN)
    os.link(place / "old.yaml", place / "ran.yaml")
    assert command("plan.yaml", "--summarize-path", "ran.yaml").code == 0
    assert (place / "old.yaml").read_text() == PLAN
    assert (place / "ran.yaml").read_text() != PLAN


def test_a_summary_goes_to_a_device(command: Command):
    assert command("plan.yaml", "--summarize-path", "/dev/null").code == 0


@pytest.mark.parametrize("text", ["", "# nothing yet\n", PLAN])
def test_a_plan_and_an_empty_file_are_replaced(tmp_path: Path, text: str):
    (tmp_path / "plan.yaml").write_text(text)
    write_plan(str(tmp_path / "plan.yaml"), "transforms: []\n")
    assert (tmp_path / "plan.yaml").read_text() == "transforms: []\n"


@pytest.mark.parametrize("text", ["notes", "- a list", "{a: 1}", "a: [", "\x00\x01", "{'transforms"])
def test_other_files_are_kept(tmp_path: Path, text: str):
    (tmp_path / "file").write_text(text)
    with pytest.raises(StoreError, match=r"is no plan, and a plan replaces nothing else\n    Name another file."):
        write_plan(str(tmp_path / "file"), PLAN)
    assert (tmp_path / "file").read_text() == text
    write_plan(str(tmp_path / "another"), PLAN)


def test_a_folder_is_no_place_for_a_plan(tmp_path: Path):
    with pytest.raises(StoreError, match=r"is a folder\n    Name a file for the plan."):
        refuse_other_files(str(tmp_path))
    refuse_other_files(str(tmp_path / "plan.yaml"))


def test_parent_folders_of_a_plan_are_created(tmp_path: Path):
    write_plan(str(tmp_path / "a/b/plan.yaml"), PLAN)
    assert (tmp_path / "a/b/plan.yaml").read_text() == PLAN
