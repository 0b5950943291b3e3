"""The log on stderr: lines for people, JSON lines for programs, tracebacks for the asking; and the table of codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from brainsurgery_jax.cli.exit_codes import MEANINGS, ExitCode
from brainsurgery_jax.engine.events import Event
from tests.cli.conftest import ROOT, Answer, Command

JSON = "--log-format=json"


def events(done: Answer) -> list[dict[str, Any]]:
    """The lines of stderr, all of which must be JSON objects."""
    return [json.loads(line) for line in done.err.splitlines()]


def kinds(done: Answer) -> list[str]:
    return [line["event"] for line in events(done)]


def test_a_run_is_logged_from_its_start_to_its_exit_code(command: Command):
    done = command("plan.yaml", JSON)
    found = kinds(done)
    assert (found[0], found[-3:]) == ("started", ["finishing", "published", "ended"])
    assert set(found[1:-3]) == {"wrote", "advanced"}
    assert (done.code, events(done)[-1]["exit_code"]) == (0, 0)


def test_every_line_has_its_version_its_time_and_its_kind(command: Command):
    for line in events(command("plan.yaml", JSON)):
        assert line["schema_version"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])


def test_what_advances_adds_up_to_what_was_planned(command: Command):
    lines = events(command("plan.yaml", JSON))
    (started,) = [line for line in lines if line["event"] == "started"]
    assert started["work_bytes"] == sum(line["bytes"] for line in lines if line["event"] == "advanced") > 0
    assert started["bytes"] == sum(line["bytes"] for line in lines if line["event"] == "wrote") == 80


@pytest.mark.parametrize("words", [("--log-format", "json", "run", "plan.yaml"), ("run", "plan.yaml", JSON),
                                   ("run", "--log-format", "json", "plan.yaml")])  # fmt: skip
def test_the_option_stands_anywhere(command: Command, words: tuple[str, ...]):
    assert kinds(command(*words))[-1] == "ended"


def test_results_stay_on_stdout(command: Command, place: Path):
    step = "transforms[1]={dump: {target: ids, verbosity: stat}}"
    plain, logged = command("plan.yaml", step, "-q"), command("plan.yaml", step, JSON, "--overwrite")
    assert plain.out == logged.out != ""
    (said,) = [line for line in events(logged) if line["event"] == "said"]
    assert said["document"]["parts"][0]["kind"] == "tree"


def test_both_streams_may_be_json(command: Command):
    done = command("plan.yaml", "--json", JSON)
    assert json.loads(done.out)["ok"]
    assert kinds(done)[0] == "started"


def test_a_conversion_to_json_is_logged_too(command: Command):
    done = command("convert", "base.safetensors", "out.npz", "--layout", "none", "--json", JSON)
    assert {"started", "published", "ended"} <= set(kinds(done))


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("run", "plan.yaml", "transforms[1].assert.exists=nothing"), 1, "assert-failed"),
        (("run", "plan.yaml", "--memory", "much"), 2, "usage"),
        (("nonsense",), 2, "usage"),
        (("run",), 2, "usage"),
        (("run", "plan.yaml", "inputs[0]=none.safetensors"), 3, "io-input"),
        (("inspect", "none.safetensors"), 3, "io"),
    ],
)
def test_a_failure_is_a_diagnostic_and_the_exit_code(command: Command, words: tuple[str, ...], code: int, told: str):
    done = command(*words, JSON)
    lines = events(done)
    assert [line["code"] for line in lines if line["event"] == "diagnostic"] == [told]
    assert (done.code, lines[-1]["event"], lines[-1]["exit_code"]) == (code, "ended", code)


def test_a_format_that_is_none_is_wrong_usage(command: Command):
    done = command("plan.yaml", "--log-format", "xml")
    assert (done.code, "'xml' is not one of 'text', 'json'" in done.err) == (2, True)


def test_an_error_is_lines_for_people_without_a_traceback(command: Command):
    assert "Traceback" not in command("run", "plan.yaml", "inputs[0]=none.safetensors").err


@pytest.mark.parametrize("words", [("--traceback",), ()])
def test_a_traceback_comes_for_the_asking_before_the_error(command: Command, words: tuple[str, ...]):
    env = {} if words else {"BRAINSURGERY_TRACEBACK": "1"}
    done = command("run", "plan.yaml", "inputs[0]=none.safetensors", *words, **env)
    assert done.err.startswith("Traceback (most recent call last):")
    assert done.err.splitlines()[-2].startswith(
        "override 'inputs[0]=none.safetensors':1:11: none.safetensors: does not"
    )


def test_a_traceback_is_one_line_of_json(command: Command):
    (found,) = [
        e for e in events(command("inspect", "no.safetensors", JSON, "--traceback")) if e["event"] == "traceback"
    ]
    assert (found["error"], found["text"].splitlines()[0]) == ("StoreError", "Traceback (most recent call last):")


def test_the_page_has_every_exit_code_and_no_other():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/logs.md").read_text(), re.MULTILINE)
    assert {ExitCode(int(code)): meaning for code, meaning in rows} == MEANINGS
    assert set(MEANINGS) == set(ExitCode)


def test_the_page_has_every_event_that_a_run_may_have():
    listed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/logs.md").read_text(), re.MULTILINE))
    assert {kind.__name__.lower() for kind in get_args(Event)} <= listed
