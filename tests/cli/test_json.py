"""`--json`: standard output is one JSON object with a version; errors are in it as data, and exit codes stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brainsurgery_jax.cli.app import app
from tests.cli.conftest import Command


def said(command: Command, *words: str, code: int = 0) -> dict[str, Any]:
    """What a command prints as JSON."""
    done = command(*words, "--json")
    assert done.code == code, done
    found = json.loads(done.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["schema_version"] == 1
    return found


def test_a_run_that_fails_keeps_the_reports_that_came_before(command: Command):
    steps = "transforms=[{dump: {target: ids}}, {assert: {iszero: ids}}, {dump: {target: ids}}]"
    found = said(command, "run", "plan.yaml", steps, code=1)
    assert (found["ok"], found["exit_code"]) == (False, 1)
    assert "is not zero everywhere" in found["diagnostics"][0]["message"]
    assert len(found["reports"]) == 1


def test_run_gives_reports_and_outputs_as_data(command: Command, place: Path):
    found = said(command, "run", "plan.yaml", "transforms[1]={dump: {target: ids}}")
    tree = {"kind": "tree", "title": "", "tensors": {"ids": {"shape": [4]}}}
    assert found["reports"] == [{"kind": "parts", "parts": [tree]}]
    assert found["published"] == [{"path": "out.safetensors", "bytes": 80, "tensors": 3}]
    assert (found["ok"], found["dry_run"], found["diagnostics"]) == (True, False, [])
    assert (place / "out.safetensors").exists()


def test_a_summary_is_a_plan_as_data(command: Command):
    found = said(command, "run", "plan.yaml", "--dry-run", "--summarize", "--summary-mode", "resolve")
    assert found["summary"]["inputs"] == ["base::base.safetensors"]
    assert [list(step) for step in found["summary"]["transforms"]] == [["move"], ["assert"]]


@pytest.mark.parametrize("words", [("run",), ("explain",), ("check",)])
def test_a_mistake_in_a_plan_is_data_and_exits_with_1(command: Command, words: tuple[str, ...]):
    found = said(command, *words, "plan.yaml", "transforms[1].assert.exists=nothing", code=1)
    (mistake,) = found["diagnostics"]
    assert found["ok"] is False
    assert mistake["severity"] == "error"
    assert "no tensor matches 'nothing'" in mistake["message"]
    place = {"file": "override 'transforms[1].assert.exists=nothing'", "line": 1, "column": 22}
    assert mistake["place"] == place


@pytest.mark.parametrize(
    "words", [("inspect", "none.safetensors"), ("convert", "none.safetensors", "out"), ("run", "none.yaml")], ids=str
)
def test_a_missing_file_is_data_and_keeps_its_exit_code(command: Command, words: tuple[str, ...]):
    code = command(*words).code
    (mistake,) = said(command, *words, code=code)["diagnostics"]
    assert code != 0
    assert "none" in mistake["message"] + str(mistake["place"])


def test_wrong_usage_is_data_and_exits_with_2(command: Command):
    found = said(command, "run", "plan.yaml", "--memory", "much", code=2)
    assert found["diagnostics"][0]["code"] == "usage"
    assert said(command, "inspect", "base.safetensors", "--nothing", code=2)["exit_code"] == 2


def test_a_diff_that_cannot_be_made_is_data_and_exits_with_2(command: Command):
    found = said(command, "diff", "base.safetensors", "none.safetensors", code=2)
    assert found["diagnostics"][0]["place"]["file"] == "none.safetensors"


def test_a_target_that_matches_nothing_is_data(command: Command):
    found = said(command, "inspect", "base.safetensors", "--target", "idz", code=1)
    assert "Did you mean 'ids'?" in found["diagnostics"][0]["message"]


def test_convert_gives_what_it_wrote(command: Command, place: Path):
    found = said(command, "convert", "base.safetensors", "out.npz", "--layout", "none", "--verify")
    assert [row["path"] for row in found["published"]] == ["out.npz"]
    assert found["verification"]


def test_report_gives_the_page_that_it_wrote(command: Command, place: Path):
    pytest.importorskip("matplotlib")
    found = said(command, "report", "base.safetensors", "--to", "page.html")
    assert (found["path"], found["other"], found["page"]) == ("base.safetensors", None, "page.html")
    assert found["bytes"] == (place / "page.html").stat().st_size


def test_every_command_that_yields_something_takes_json(command: Command):
    without = {name for name in app_commands() if "--json" not in command(name, "--help").out}
    assert without == {"schema", "web"}  # which prints JSON itself, and which serves pages


def app_commands() -> list[str]:
    return [str(one.name) for one in app.registered_commands]


def test_an_imported_plan_is_data(command: Command, place: Path):
    config = "merge_method: linear\ndtype: float32\nmodels:\n  - {model: a, parameters: {weight: 1}}\n"
    for folder in ("a",):
        (place / folder).mkdir()
        (place / "base.safetensors").rename(place / folder / "model.safetensors")
    (place / "merge.yml").write_text(config, encoding="utf-8")
    found = said(command, "import-mergekit", "merge.yml")
    assert {"inputs", "transforms"} <= found["plan"].keys()


def test_demo_gives_what_each_command_gives(command: Command):
    found = said(command, "demo")
    assert found["plan"].startswith("# Make a small GPT-2 smaller")
    results = {row["command"].split()[0]: row["result"] for row in found["commands"]}
    assert (results["check"]["ok"], results["run"]["ok"]) == (True, True)
    assert [row["path"] for row in results["run"]["published"]] == ["small/"]
    assert [step["op"] for step in results["explain"]["steps"]] == ["move", "scale_", "phlora", "cast_", "assert"]
    assert {tensor["dtype"] for tensor in results["inspect"]["tensors"].values()} == {"bfloat16"}
