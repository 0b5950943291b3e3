"""0 done, 1 a wrong plan, 2 wrong usage, 3 files, 130 interrupted; and which stream says what."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainsurgery_jax.cli import logits
from brainsurgery_jax.forward.gap import LogitGap
from tests.checkpoints import read, write
from tests.cli.conftest import Command, environment


def test_a_plan_alone_is_run(command: Command, place: Path):
    assert command("plan.yaml").code == 0
    assert set(read(place / "out.safetensors")) == {"layer.0.w", "layer.1.w", "ids"}


def test_run_says_on_stderr_what_it_wrote(command: Command):
    done = command("run", "plan.yaml")
    assert (done.out, done.err) == ("", "wrote out.safetensors: 3 tensors, 80 B\n")


def test_quiet_says_nothing(command: Command):
    assert command("plan.yaml", "--quiet") == (0, "", "")


def test_options_may_follow_overrides(command: Command, place: Path):
    assert command("plan.yaml", "output=other.safetensors", "--no-fsync", "-q").code == 0
    assert (place / "other.safetensors").exists()


def test_an_option_may_come_before_the_plan(command: Command):
    assert command("--quiet", "plan.yaml") == (0, "", "")


def test_a_wrong_plan_is_1_and_its_place_starts_the_line(command: Command):
    done = command("plan.yaml", "transforms[1].assert.exists=nothing")
    assert (done.code, done.out) == (1, "")
    place = "override 'transforms[1].assert.exists=nothing':1:22"
    assert done.err.startswith(f"{place}: assert.exists: no tensor matches")


def test_a_missing_checkpoint_is_3(command: Command):
    done = command("plan.yaml", "inputs[0]=base::basis.safetensors")
    assert done.code == 3
    assert "Did you mean 'base.safetensors'?" in done.err


def test_a_missing_checkpoint_and_a_mistake_are_1(command: Command):
    assert command("plan.yaml", "inputs[0]=base::no.safetensors", "transforms[1]=nonsense").code == 1


def test_an_output_that_exists_is_3_until_it_may_be_replaced(command: Command):
    codes = [command("plan.yaml", *more).code for more in ([], [], ["--overwrite"])]
    assert codes == [0, 3, 0]


def test_an_unreadable_checkpoint_is_3_for_inspect(command: Command):
    assert command("inspect", "none.safetensors").code == 3


@pytest.mark.parametrize("format", ["safetensors", "torch", "dcp"])
def test_a_file_that_may_not_grow_is_3_and_leaves_nothing(place: Path, format: str):
    write(place / "big.safetensors", {"w": np.ones((100, 100), np.float32)})
    before = sorted(p.name for p in place.iterdir())
    words = ["convert", "big.safetensors", "out/", "--to", format, "-q"]
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        f"sys.argv[1:] = {words}; from brainsurgery_jax.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 3
    assert re.fullmatch(r"\S*/out: could not \w+ the partial output: File too large\n", done.stderr)
    assert sorted(p.name for p in place.iterdir()) == before


def test_an_unknown_command_is_2_and_the_nearest_one_is_told(command: Command):
    done = command("chek")
    assert done.code == 2
    assert "Did you mean 'check'?" in done.err


def test_a_checkpoint_in_place_of_a_plan_is_2_and_inspect_is_told(command: Command):
    done = command("base.safetensors")
    assert done.code == 2
    assert "inspect base.safetensors" in done.err


def test_an_unknown_option_is_2(command: Command):
    assert command("plan.yaml", "--frobnicate").code == 2


@pytest.mark.parametrize("option", ["--shard-size", "--memory"])
def test_a_wrong_size_is_2(command: Command, option: str):
    done = command("plan.yaml", option, "5 bananas")
    assert done.code == 2
    assert "expected a size such as 5GB" in done.err


@pytest.mark.parametrize(
    "words", [["-h"], ["--help"], ["run", "-h"], ["check", "--help"], ["ops", "-h"], ["demo", "-h"]]
)
def test_help_is_everywhere(command: Command, words: list[str]):
    done = command(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: brainsurgery-jax")


def test_the_version_is_printed(command: Command):
    assert command("--version").out.startswith("brainsurgery-jax ")


def test_options_without_meaning_are_accepted_with_a_note(command: Command):
    done = command("plan.yaml", "--provider", "arena", "--arena-root", "x", "-q")
    assert done.code == 0
    assert done.err.splitlines() == [
        "note: --provider is accepted but has no effect",
        "note: --arena-root is accepted but has no effect",
    ]


def test_a_dry_run_writes_nothing(command: Command, place: Path):
    done = command("plan.yaml", "--dry-run")
    assert (done.code, done.err) == (0, "dry run: nothing was written\n")
    assert not (place / "out.safetensors").exists()


def test_brackets_in_a_message_are_kept(command: Command):
    done = command("check", "plan.yaml", "transforms[0].move.from='[red]x[/red]'")
    assert "[red]x[/red]" in done.err


def test_control_characters_of_a_name_do_not_reach_the_terminal(command: Command, place: Path):
    write(place / "odd.safetensors", {"a\x1b[31mb": np.zeros(1, np.float32)})
    assert r"a\x1b[31mb" in command("inspect", "odd.safetensors").out


def test_a_reader_who_goes_away_is_no_error(place: Path):
    line = f"{sys.executable} -m brainsurgery_jax schema | head -c 10; echo; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=place, env=environment(), capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split()[-1] == "0"


def test_an_interrupt_is_130_and_publishes_nothing(place: Path):
    write(
        place / "base.safetensors", {f"w{i}": np.random.default_rng(i).standard_normal((700, 700)) for i in range(30)}
    )
    steps = "[dump, {phlora_: {target: '.*', rank: 3}}]"
    (place / "slow.yaml").write_text(f"inputs: [base.safetensors]\ntransforms: {steps}\noutput: slow\n")
    line = [sys.executable, "-m", "brainsurgery_jax", "slow.yaml"]
    with subprocess.Popen(
        line, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()  # what `dump` says comes first: the work has begun
        run.send_signal(signal.SIGINT)
        _, err = run.communicate()
    assert (run.returncode, err) == (130, "interrupted: nothing was published\n")
    assert not [p.name for p in place.iterdir() if "slow" in p.name and p.name != "slow.yaml"]


def test_a_defect_is_70_with_one_apology_and_no_traceback(place: Path):
    code = "from brainsurgery_jax.cli import app, plans; plans.run = lambda *a: 1 / 0; app.main()"
    line = [sys.executable, "-c", code, "plan.yaml"]
    done = subprocess.run(line, cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_shows_its_traceback_when_asked(place: Path):
    code = "from brainsurgery_jax.cli import app, plans; plans.run = lambda *a: 1 / 0; app.main()"
    line = [sys.executable, "-c", code, "plan.yaml", "--verbose"]
    done = subprocess.run(line, cwd=place, env=environment(), capture_output=True, text=True)
    assert "Traceback" in done.stderr


def test_the_summary_is_printed_only_when_asked(command: Command):
    done = command("plan.yaml", "--summarize", "-q")
    assert done.out.startswith("transforms:\n  - move:\n")


def test_a_resolved_summary_can_be_run_again(command: Command, place: Path):
    command("plan.yaml", "--summarize-path", "again.yaml", "--summary-mode", "resolve")
    before = read(place / "out.safetensors")
    assert command("again.yaml", "--overwrite").code == 0
    assert set(read(place / "out.safetensors")) == set(before)


@pytest.mark.parametrize("path", ["plan.yaml", "./base.safetensors"])
def test_a_summary_is_not_written_over_what_the_run_reads(command: Command, place: Path, path: str):
    before = (place / path).read_bytes()
    done = command("plan.yaml", "--summarize-path", path)
    assert done.code == 2
    assert "is, or is inside, an input of this run" in done.err
    assert (place / path).read_bytes() == before
    assert not (place / "out.safetensors").exists()


def test_the_shard_size_counts_where_the_plan_says_nothing(command: Command, place: Path):
    assert command("plan.yaml", "output=parts/", "--shard-size", "40B", "-q").code == 0
    index = json.loads((place / "parts/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1


def test_a_plan_that_ends_as_a_dry_run_writes_neither_output_nor_summary(command: Command, place: Path):
    done = command("plan.yaml", "transforms=[{set: {dry-run: true}}]", "--summarize-path", "summary.yaml")
    assert (done.code, done.err) == (0, "dry run: nothing was written\n")
    assert not (place / "summary.yaml").exists()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["plan.yaml", "--seed=3"], "seed=3"),
        (["check", "plan.yaml", "--vars.rank=8"], "vars.rank=8"),
        (["run", "plan.yaml", "--output"], "output=..."),
        (["plan.yaml", "--transforms[0].move.to=x"], "transforms[0].move.to=x"),
    ],
)
def test_an_override_with_dashes_is_refused_with_the_one_that_is_meant(command: Command, words: list[str], meant: str):
    done = command(*words)
    assert done.code == 2
    assert f"Write overrides without dashes: {meant}\n" in done.err


def test_a_summary_has_the_references_to_the_environment_and_not_their_values(
    command: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WHERE", "hidden")
    step = "transforms=[{copy: {from: '(.*)', to: '${env.WHERE}.${vars.more}.\\1'}}]"
    done = command("plan.yaml", step, "vars.more=${oc.env:WHERE}", "--summarize", "--dry-run", "-q")
    assert "hidden" not in done.out
    assert "${env.WHERE}.${oc.env:WHERE}." in done.out


@pytest.mark.parametrize(
    "words",
    [["diff", "a", "b"], ["spectrum", "a"], ["compare-logits", "a", "b"], ["convert", "a", "b"]],
    ids=lambda words: words[0],
)
def test_a_wrong_budget_is_2_and_names_the_option(command: Command, words: list[str]):
    done = command(*words, "--memory", "5 bananas")
    assert done.code == 2
    assert "--memory: expected a size such as 5GB" in done.err


@pytest.mark.parametrize("tokens", ["abc", "3,,4", ",", "-1"])
def test_tokens_that_are_none_are_2(command: Command, tokens: str):
    done = command("compare-logits", "a", "b", f"--tokens={tokens}")
    assert done.code == 2
    assert f"--tokens: expected ids with commas between them, or a count; got '{tokens}'" in done.err


def test_nothing_is_within_a_limit_that_is_no_number(monkeypatch: pytest.MonkeyPatch):
    gap = LogitGap(max_diff=0.5, kl=0.1, agreement=1.0, finite=True)
    monkeypatch.setattr(logits, "compare", lambda *sides, **keys: gap)
    for limit, code in ((1.0, logits.WITHIN), (0.1, logits.BEYOND), (float("nan"), logits.BEYOND)):
        assert logits.compare_logits(("a", "b"), "3,", logits.LogitLimits(limit), memory=None, json=True) == code
