"""A run that was interrupted and goes on: the same bytes, and only what was missing is done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.engine.events import Noted
from brainsurgery_jax.engine.plan import blocks
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.store import leftovers, replacing
from brainsurgery_jax.store.runs import this_run
from tests.checkpoints import normal, read, set_block, write
from tests.cli.conftest import environment
from tests.provenance.killed import CHECKS, OUTPUTS, STEPS, Stops, plan


class Usage(NamedTuple):
    free: int


@pytest.fixture(autouse=True)
def world(here: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A source of many small items."""
    if "lock" not in request.node.name:  # digests are of whole blocks
        set_block(monkeypatch, 1 << 10)
    monkeypatch.setattr("brainsurgery_jax.engine.plan.planner.COPY_BYTES", 4096)
    tensors = {f"s{i}": normal((40, 50), seed=i) for i in range(6)} | {
        f"c{i}": normal((64, 32), seed=i) for i in range(6)
    }
    write("in.safetensors", tensors | {"t": normal((70, 30)), "d": normal((9, 9), np.float64)})


def content(kind: str) -> dict[str, bytes]:
    found = bs.open(OUTPUTS[kind]["path"])
    return {name: np.asarray(found[name]).tobytes() for name in found}


def interrupt() -> None:
    raise KeyboardInterrupt


def run_killed(kind: str, at: int, *, checks: bool = False) -> None:
    """A run with a journal in a process of its own, which is killed at a write."""
    line = [
        sys.executable,
        "-m",
        "tests.provenance.killed",
        kind,
        str(at),
        str(blocks.BLOCK),
        *(["checks"] if checks else []),
    ]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def resume(kind: str, **options: Any) -> tuple[str, ...]:
    """The notes of a run that goes on."""
    return tuple(note.message for note in plan(kind).run(resume=True, **options).notes)


@pytest.mark.parametrize("kind", list(OUTPUTS))
def test_a_killed_run_goes_on_and_gives_the_same_values(kind: str):
    plan(kind).run()
    whole = content(kind)
    run_killed(kind, 12)
    assert any(name.endswith(".journal") for name in os.listdir())
    assert resume(kind)[0].startswith("an interrupted run is continued: ")
    assert content(kind) == whole
    assert [name for name in os.listdir() if name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["torch", "orbax"])
def test_what_a_library_had_begun_to_encode_is_made_anew(kind: str):
    plan(kind).run()
    whole = content(kind)
    run_killed(kind, 12)
    (scratch,) = Path().glob(".*.scratch")
    begun = Path(scratch.name.removesuffix(".scratch"))
    if kind == "orbax":
        (begun / "d" / "inner").mkdir(parents=True)
        (begun / "d" / "x").write_bytes(b"half")
    else:
        begun.write_bytes(b"half")
    plan(kind).run(resume=True)
    assert content(kind) == whole


@pytest.mark.parametrize("kind", ["file", "shards"])
@pytest.mark.parametrize("resumes", [True, False], ids=["resumed", "anew"])
def test_what_a_killed_run_left_is_space_for_the_run_that_takes_its_place(
    kind: str, resumes: bool, monkeypatch: pytest.MonkeyPatch
):
    plan(kind).run()
    whole = content(kind)
    shutil.rmtree("out") if kind == "shards" else os.remove("out.safetensors")
    run_killed(kind, 20)
    left = [file for entry in Path().glob(".out*") for file in (entry, *entry.rglob("*")) if file.is_file()]
    held = sum(512 * file.stat().st_blocks for file in left)
    needed = sum(len(data) for data in whole.values())
    assert held > needed // 3
    monkeypatch.setattr(replacing.shutil, "disk_usage", lambda path: Usage(needed + 50_000 - held))
    plan(kind).run(resume=resumes)
    assert content(kind) == whole


def test_what_a_run_on_another_host_left_is_no_space(monkeypatch: pytest.MonkeyPatch):
    plan().run()
    needed = os.path.getsize("out.safetensors")
    left = leftovers.beside(os.path.abspath("out.safetensors"), leftovers.PARTIAL, this_run()._replace(host="other"))
    os.rename("out.safetensors", left)
    monkeypatch.setattr(replacing.shutil, "disk_usage", lambda path: Usage(needed // 2))
    with pytest.raises(PlanError, match="too little space"):
        plan().run()


@pytest.mark.parametrize("at", [1, 5, 9, 14, 20])
def test_a_run_that_goes_on_writes_the_same_file_wherever_it_was_killed(at: int):
    plan().run()
    whole = Path("out.safetensors").read_bytes()
    run_killed("file", at)
    plan().run(resume=True)
    assert Path("out.safetensors").read_bytes() == whole


def test_what_was_done_is_neither_read_nor_copied_again(monkeypatch: pytest.MonkeyPatch):
    from brainsurgery_jax.store.io import local

    run_killed("file", 18)
    moved: list[int] = []
    for name, size in (("read_into", lambda a: len(a[1])), ("copy_range", lambda a: a[4])):
        was = getattr(local, name)

        def count(*given: Any, was: Any = was, size: Any = size, **more: Any) -> Any:
            if more.get("path", "").endswith("in.safetensors"):
                moved.append(size(given))
            return was(*given, **more)

        monkeypatch.setattr(local, name, count)
    plan().run(resume=True)
    assert 0 < sum(moved) < sum(a.nbytes for a in read("in.safetensors").values())


def test_ctrl_c_keeps_what_a_run_wrote_that_was_started_with_resume():
    with pytest.raises(KeyboardInterrupt):
        plan().run(resume=True, listen=Stops(9, interrupt))
    kept = [name for name in os.listdir() if ".brainsurgery-paused-" in name]
    assert len(kept) == 2 and not os.path.exists("out.safetensors")
    assert "continued" in resume("file")[0]
    assert read("out.safetensors")["s0"].tobytes() == (read("in.safetensors")["s0"] * np.float32(3)).tobytes()


def test_a_run_that_goes_on_tells_of_nan_that_the_interrupted_one_wrote():
    tensors = read("in.safetensors")
    write("in.safetensors", {**tensors, "s0": np.full((40, 50), np.inf, np.float32)})
    with pytest.raises(KeyboardInterrupt):
        plan().run(resume=True, listen=Stops(9, interrupt))
    going, nan = resume("file")
    assert "continued: " in going and "continued: 0 of" not in going
    assert nan == "out.safetensors: 's0' holds NaN or infinity"


def test_ctrl_c_leaves_nothing_of_any_other_run():
    with pytest.raises(KeyboardInterrupt):
        plan().run(listen=Stops(9, interrupt))
    assert sorted(os.listdir()) == ["in.safetensors"]


def test_a_failed_assert_leaves_nothing_to_go_on_with():
    failing = plan(transforms=[*STEPS, {"assert": {"equal": {"left": "s0", "right": "s1"}}}])
    with pytest.raises(bs.PlanError):
        failing.run(resume=True)
    assert sorted(os.listdir()) == ["in.safetensors"]


def test_a_run_without_resume_removes_what_was_left():
    run_killed("file", 9)
    plan().run()
    assert sorted(os.listdir()) == ["in.safetensors", "out.safetensors"]


def test_bytes_that_changed_since_are_written_again():
    plan().run()
    whole = Path("out.safetensors").read_bytes()
    run_killed("file", 20)
    (partial,) = (name for name in os.listdir() if "partial" in name and not name.endswith(".journal"))
    with open(partial, "r+b") as file:
        file.seek(2000)
        file.write(bytes(60_000))
    plan().run(resume=True)
    assert Path("out.safetensors").read_bytes() == whole


def test_a_torn_journal_is_read_up_to_its_last_whole_line():
    plan().run()
    whole = Path("out.safetensors").read_bytes()
    run_killed("file", 20)
    (journal,) = Path().glob(".*.journal")
    journal.write_bytes(journal.read_bytes()[:-7])
    plan().run(resume=True)
    assert Path("out.safetensors").read_bytes() == whole


def test_another_plan_is_refused_and_the_remedy_works():
    run_killed("file", 9)
    other = plan(transforms=STEPS[:1])
    with pytest.raises(bs.StoreError, match="cannot be resumed: plan and outputs changed since") as refused:
        other.run(resume=True)
    assert "run without `resume=True`" in str(refused.value)
    other.run()
    assert read("out.safetensors")["s0"].shape == (40, 50)


def test_another_input_is_refused():
    run_killed("file", 9)
    write("in.safetensors", {name: array + 1 for name, array in read("in.safetensors").items()})
    with pytest.raises(bs.StoreError, match="cannot be resumed: inputs changed since"):
        plan().run(resume=True)


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch):
    run_killed("file", 9)
    monkeypatch.setattr("brainsurgery_jax.provenance.lock.__version__", "99")
    with pytest.raises(bs.StoreError, match="cannot be resumed: versions changed since"):
        plan().run(resume=True)


def test_items_with_questions_are_done_again():
    both = plan(transforms=[*STEPS, *CHECKS])
    both.run()
    whole = Path("out.safetensors").read_bytes()
    run_killed("file", 9, checks=True)
    told = [event for event in _events(both) if isinstance(event, Noted)]
    assert told and Path("out.safetensors").read_bytes() == whole


def _events(chosen: bs.Plan) -> list[object]:
    events: list[object] = []
    chosen.run(resume=True, listen=events.append)
    return events


def test_a_run_that_goes_on_writes_the_lock_of_the_whole(here: Path):
    plan().run(lock=True)
    whole = Path("out.safetensors.lock.json").read_bytes()
    run_killed("file", 14)
    plan().run(resume=True, lock=True)
    assert Path("out.safetensors.lock.json").read_bytes() == whole
    assert bs.verify("out.safetensors").ok


def test_a_run_that_goes_on_writes_the_lock_at_its_path(here: Path):
    run_killed("file", 14)
    plan().run(resume=True, lock="locks/a.json")
    assert sorted(os.listdir("locks")) == ["a.json"] and bs.verify("locks/a.json").ok
