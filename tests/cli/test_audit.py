"""`brainsurgery-jax audit`: its text, its JSON, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from brainsurgery_jax.cli.app import app
from tests.checkpoints import normal, write


@pytest.fixture
def plan(tmp_path: Path) -> str:
    write(tmp_path / "m.safetensors", {f"h.{i}.w": normal((4, 4), seed=i) for i in range(3)})
    data = {
        "vars": {"by": 2},
        "inputs": [f"m::{tmp_path / 'm.safetensors'}"],
        "transforms": [{"scale_": {"target": r"h\.\d+\.w", "by": "${vars.by}"}}],
        "output": {"path": str(tmp_path / "out.safetensors"), "alias": "m"},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(data))
    return str(tmp_path / "plan.yaml")


def test_the_table_the_errors_that_were_missed_and_asserts_are_printed(plan: str, tmp_path: Path):
    done = CliRunner().invoke(app, ["audit", plan, "by=3", "--each", "1"])
    assert done.exit_code == 0, done.output
    assert "scale doubled: step 1: `by`: 3 -> 6 (seen by an assert below)" in done.stdout
    assert "- assert: {fingerprint: {of: m, is: 'blake2b:" in done.stdout
    assert "planted errors seen" in done.stdout.splitlines()[-1]
    assert not (tmp_path / "out.safetensors").exists()


def test_verbose_lists_what_saw_an_error(plan: str):
    done = CliRunner().invoke(app, ["audit", plan, "--each", "1", "--no-suggest", "--verbose"])
    assert "check: name misspelt" not in done.stdout  # of one letter, nothing is misspelt
    assert "missed: scale doubled" in done.stdout
    assert "add to `transforms`" not in done.stdout


def test_json_has_every_error_with_its_level(plan: str):
    done = CliRunner().invoke(app, ["audit", plan, "--each", "1", "--json"])
    found = json.loads(done.stdout)
    assert found["schema_version"] == 1
    doubled = next(each for each in found["planted"] if each["mutator"] == "scale doubled")
    assert (doubled["class"], doubled["level"]) == ("scale", "missed")
    assert any(doubled["what"] in each["sees"] for each in found["suggestions"])
    assert found["seen"] + found["missed"] == sum(each["level"] != "equivalent" for each in found["planted"])
    assert found["classes"]["scale"]["missed"] > 0


@pytest.mark.parametrize(("share", "code"), [("0", 0), ("1", 1)])
def test_a_smaller_share_than_asked_for_is_an_exit_code(plan: str, share: str, code: int):
    assert (
        CliRunner().invoke(app, ["audit", plan, "--each", "1", "--no-suggest", "--at-least", share]).exit_code == code
    )


def test_a_plan_that_cannot_be_read_and_one_with_a_mistake_fail_as_check_does(plan: str, tmp_path: Path):
    assert CliRunner().invoke(app, ["audit", plan, "transforms[0].scale_.target=nothing"]).exit_code == 1
    assert CliRunner().invoke(app, ["audit", plan, f"inputs[0]=m::{tmp_path / 'no.safetensors'}"]).exit_code == 3
