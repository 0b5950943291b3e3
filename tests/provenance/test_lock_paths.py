"""Locks at a path of the user's: what may be there, and what is answered from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from tests.checkpoints import normal, write
from tests.cli.conftest import environment

LOCK = "brainsurgery.lock.json"


@pytest.fixture(autouse=True)
def world(here: Path) -> None:
    (here / "in").mkdir()
    write("in/model.safetensors", {"w": normal((4, 6)), "b": normal((4,), seed=1)})
    Path("plan.yaml").write_text(json.dumps({**content(), "output": "out.safetensors"}))


def content() -> dict[str, Any]:
    return {"inputs": ["base::in"], "transforms": [{"scale_": {"target": "w", "by": 2}}]}


def plan(path: str = "out.safetensors", **more: Any) -> bs.Plan:
    return bs.load({**content(), "output": path, **more})


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "brainsurgery_jax", *words]
    return subprocess.run(line, env=environment(), capture_output=True, text=True)


# --- Where it goes ----------------------------------------------------------------------------------------------------


def test_the_lock_of_a_file_is_at_its_path_alone():
    plan().run(lock="locks/a.json")
    assert sorted(os.listdir()) == ["in", "locks", "out.safetensors", "plan.yaml"]
    assert bs.verify("locks/a.json") == ("locks/a.json", "out.safetensors", 2, (), False)


def test_a_folder_has_its_lock_in_it_as_well():
    plan("out/").run(lock=Path("locks/a.json"))
    own, other = (json.loads(Path(path).read_text()) for path in (f"out/{LOCK}", "locks/a.json"))
    assert own["output"].pop("path") == "." and other["output"].pop("path") == "../out"
    assert own["output"] == other["output"]
    assert bs.verify("out").ok and not bs.verify("out").headers_only


@pytest.mark.parametrize("words", [
    ["plan.yaml", "--lock", "a.json"],
    ["--lock", "a.json", "plan.yaml"],
    ["run", "plan.yaml", "--lock=a.json"],
    ["run", "--lock=a.json", "--sha256", "plan.yaml"],
], ids=" ".join)  # fmt: skip
def test_a_path_may_follow_the_option(words: list[str]):
    assert command(*words).returncode == 0
    assert bs.verify("a.json").ok and not Path("out.safetensors.lock.json").exists()


@pytest.mark.parametrize("words", [["--lock", "plan.yaml"], ["run", "plan.yaml", "--lock", "seed=1"]], ids=" ".join)
def test_a_plan_or_an_override_after_the_option_is_no_path(words: list[str]):
    words = words if "plan.yaml" in words else [*words, "plan.yaml"]
    assert command(*words).returncode == 0
    assert bs.verify("out.safetensors.lock.json").ok


def test_conversions_write_locks_too():
    assert command("convert", "in", "out.npz", "--lock", "a.json").returncode == 0
    assert command("convert", "--lock", "in", "out/", "--layout", "none").returncode == 0
    bs.convert("in", "again.npz", lock="b.json")
    assert all(bs.verify(path).ok and not bs.verify(path).headers_only for path in ("a.json", "out", "b.json"))
    assert bs.replay("a.json").ok


def test_a_run_over_an_interrupted_one_writes_it():
    plan().run(lock="a.json", resume=True)
    assert bs.verify("a.json").ok


# --- What is refused, before anything is written ----------------------------------------------------------------------


def refused(match: str, path: str = "out.safetensors", /, lock: str = "a.json", **more: Any) -> None:
    before = sorted(os.listdir())
    with pytest.raises(bs.StoreError, match=match):
        plan(path).run(lock=lock, **more)
    assert sorted(os.listdir()) == before


def test_a_name_that_is_no_locks_is_refused():
    refused(r"does not end in \.json.*\n.*ends in \.json", lock="a.txt")
    done = command("plan.yaml", "--lock", "a.txt")
    assert done.returncode == 2 and "expected a path that ends in .json, got 'a.txt'" in done.stderr
    assert plan().run(lock="a.txt.json").published


@pytest.mark.parametrize("lock", ["out/a.json", f"out/{LOCK}", "in/../out/deeper/a.json"])
def test_a_path_in_the_output_is_refused(lock: str):
    refused("lies in the output out/, which is replaced as a whole", "out/", lock=lock)
    assert plan("out/").run(lock=True).published and Path("out", LOCK).is_file()


def test_one_path_for_two_outputs_is_refused():
    two = bs.load({**content(), "outputs": ["a.npz", "b.npz"]})
    with pytest.raises(bs.StoreError, match=r"is one lock, and the run writes 2 checkpoints\n.*`lock=True`: each gets"):
        two.run(lock="a.json")
    two.run(lock=True)
    assert bs.verify("a.npz").ok and bs.verify("b.npz").ok


def test_a_lock_is_replaced_on_demand_alone():
    plan().run(lock="a.json")
    refused("exists already", "other.npz")
    plan("other.npz").run(lock="a.json", overwrite=True)
    assert bs.verify("a.json").path == "other.npz"


@pytest.mark.parametrize("make", [
    lambda: Path("a.json").write_text("{}"),
    lambda: Path("a.json").write_text("no JSON"),
    lambda: shutil.copy("in/model.safetensors", "a.json"),
])  # fmt: skip
def test_what_is_no_lock_is_never_replaced(make: Any):
    make()
    refused("is no lock, and a lock replaces nothing else", overwrite=True)
    assert plan("other.npz").run(lock="other.json").published
    os.rename("a.json", "away.json")
    assert plan().run(lock="a.json").published


def test_a_lock_of_another_version_is_replaced_as_a_lock():
    Path("a.json").write_text(json.dumps({"kind": "brainsurgery-jax lock", "schema_version": 99}))
    assert plan().run(lock="a.json", overwrite=True).published


@pytest.mark.parametrize(("make", "told"), [
    (lambda: os.mkfifo("a.json"), "is a FIFO"),
    (lambda: os.mkdir("a.json"), "is a folder"),
    (lambda: os.symlink("/dev/null", "a.json"), "is a device"),
])  # fmt: skip
def test_other_kinds_of_nodes_are_refused(make: Any, told: str):
    make()
    refused(told, overwrite=True)


def test_a_folder_that_is_not_there_is_created_and_goes_if_the_run_fails():
    failing = plan(transforms=[{"assert": {"iszero": {"of": "w"}}}])
    with pytest.raises(bs.PlanError, match="iszero"):
        failing.run(lock="new/deep/a.json")
    assert not Path("new").exists()


# --- What is answered from it -----------------------------------------------------------------------------------------


def test_blame_replay_and_locked_runs_take_its_path():
    plan("out/").run(lock="locks/a.json")
    assert bs.blame("locks/a.json", "w").inputs == ("base::w",)
    assert bs.replay("locks/a.json").ok and bs.replay("locks/a.json", to="again").ok
    assert plan("third/").run(locked="locks/a.json").published
    assert sorted(os.listdir()) == ["again", "in", "locks", "out", "plan.yaml", "third"]


def test_an_output_that_was_moved_is_found_where_it_is_said_to_be():
    plan().run(lock="a.json")
    os.rename("out.safetensors", "moved.safetensors")
    done = command("verify", "a.json")
    assert done.returncode == 3 and "Name its place by `--at PATH`" in done.stderr
    assert command("verify", "a.json", "--at", "moved.safetensors").returncode == 0
    assert bs.verify("a.json", at="moved.safetensors").ok


def test_a_lock_elsewhere_on_the_machine_tells_no_folder(here: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "home" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(here / "home" / "me"))
    plan().run(lock="~/a.json")
    lock = Path("home/me/a.json")
    assert str(here) not in lock.read_text() and json.loads(lock.read_text())["output"]["path"] == "out.safetensors"
    assert bs.verify(str(lock), at="out.safetensors").ok


def test_inputs_that_are_sums_are_found_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch):
    bs.load({**content(), "output": {"path": "delta/", "format": "delta"}}).run()
    bs.load({"inputs": ["m::in + delta"], "output": "out.npz"}).run(lock="locks/a.json")
    monkeypatch.chdir(here / "in")
    assert bs.verify("../locks/a.json", inputs=True).ok and bs.replay("../locks/a.json").ok


def test_a_lock_replaces_no_other_file_that_a_path_through_a_missing_folder_reaches():
    Path("notes.json").write_text("{}")
    with pytest.raises(StoreError, match="is no lock, and a lock replaces nothing else"):
        plan().run(lock="missing/../notes.json", overwrite=True)
    assert Path("notes.json").read_text() == "{}"
