"""The lock that folders carry without being asked: what headers say, and no digests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, read, write
from tests.cli.conftest import environment

LOCK = "brainsurgery.lock.json"
FORMATS = ("safetensors", "orbax", "dcp", "torch", "flax")


@pytest.fixture(autouse=True)
def world(here: Path) -> None:
    (here / "in").mkdir()
    write("in/model.safetensors", {"w": normal((4, 6)), "b": normal((4,), seed=1)})
    Path("in/config.json").write_text('{"a": 1}')


def plan(path: str = "out/", **output: Any) -> bs.Plan:
    steps = [{"scale_": {"target": "w", "by": 2}}, {"move": {"from": "b", "to": "c"}}]
    return bs.load({"inputs": ["base::in"], "transforms": steps, "output": {"path": path, "overwrite": True, **output}})


def lock_of(folder: str = "out") -> dict[str, Any]:
    return json.loads(Path(folder, LOCK).read_text())


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "brainsurgery_jax", *words]
    return subprocess.run(line, env=environment(), capture_output=True, text=True)


def change_output() -> None:
    write("out/model.safetensors", {name: array + 1 for name, array in read("out/model.safetensors").items()})


@pytest.mark.parametrize("kind", FORMATS)
def test_every_folder_carries_one_and_is_read_as_before(kind: str):
    plan(format=kind).run()
    assert {n: t["aval"] for n, t in lock_of()["output"]["tensors"].items()} == {"w": "f32[4,6]", "c": "f32[4]"}
    np.testing.assert_array_equal(np.asarray(bs.open("out")["c"]), normal((4,), seed=1))
    assert bs.verify("out") == (f"out/{LOCK}", "out", 2, (), True)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_that_carries_one_is_replaced_as_a_whole(kind: str):
    plan(format=kind).run()
    plan(format=kind).run(lock=False)
    assert not Path("out", LOCK).exists()


def test_it_has_no_digest_and_nothing_is_read_for_it():
    bytes_read = []
    for lock in (None, False):
        files = Files(overwrite=True)
        plan().run(world=files, lock=lock)
        bytes_read.append(files.bytes_read)
    plan().run()
    assert "digest" not in json.dumps([lock_of()["output"], lock_of()["inputs"]])
    assert bytes_read[0] == bytes_read[1]


def test_it_is_the_same_from_run_to_run():
    plan().run()
    first = Path("out", LOCK).read_bytes()
    plan().run(memory=100_000_000)
    assert Path("out", LOCK).read_bytes() == first


def test_files_and_dry_runs_carry_none():
    plan("out.safetensors").run()
    plan("dry/").run(dry_run=True)
    assert sorted(os.listdir()) == ["in", "out.safetensors"]


def test_a_tree_that_is_saved_carries_none():
    bs.save("tree/", {"a": np.ones(3, np.float32)})
    assert LOCK not in os.listdir("tree")


def test_blame_and_verify_are_answered_from_it():
    plan().run()
    found = bs.blame("out", "c")
    assert found.inputs == ("base::b",) and [number for number, _ in found.steps] == [1]
    write("out/model.safetensors", {"w": normal((2, 2)), "c": normal((4,))})
    assert "tensor 'w' is f32[2,2], and was f32[4,6]" in bs.verify("out").differences


def test_verify_says_that_it_compared_no_elements():
    plan().run()
    done = command("verify", "out")
    assert done.returncode == 0
    assert "the lock has no digests: elements were not compared. `run --lock` writes them." in done.stderr


def test_a_run_cannot_be_locked_by_it():
    plan().run()
    with pytest.raises(bs.StoreError, match=r"has no digests.*\n.*run PLAN --lock"):
        plan().run(locked="out")
    plan().run(lock=True)
    assert plan("again/").run(locked="out").published


def test_a_locked_run_leaves_digests_in_its_folder():
    plan().run(lock=True)
    plan("again/").run(locked="out")
    assert bs.verify("again").headers_only is False and bs.verify("again").ok


def test_a_replay_compares_with_the_output_as_it_is():
    plan().run()
    assert bs.replay("out").ok
    change_output()
    assert "tensor 'w' (f32[4,6]) has other elements" in " ".join(bs.replay("out").differences)


def test_a_replay_misses_a_tensor_that_is_gone():
    plan().run()
    write("out/model.safetensors", {"w": normal((4, 6))})
    assert bs.replay("out").differences == ("tensor 'c' (f32[4]) is missing",)


def test_a_run_of_names_alone_does_not_import_jax_for_it():
    steps = [{"move": {"from": "b", "to": "c"}}]
    Path("names.yaml").write_text(json.dumps({"inputs": ["in"], "transforms": steps, "output": "names/"}))
    line = "import sys, brainsurgery_jax as bs; bs.load('names.yaml').run(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "") and Path("names", LOCK).exists()


@pytest.mark.parametrize("option", [("--lock",), ("--sha256",), ("--locked", "x"), ("--resume",)])
def test_the_prompt_refuses_what_it_cannot_keep(option: tuple[str, ...]):
    done = command("run", "plan.yaml", "-i", *option)
    assert done.returncode == 2 and "leave out --interactive" in " ".join(done.stderr.split())
