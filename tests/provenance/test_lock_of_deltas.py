"""Locks of deltas: of what they hold, and of what they leave in their base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.world import Files
from tests.checkpoints import normal, read, write

LOCK = "delta/brainsurgery.lock.json"


@pytest.fixture(autouse=True)
def world(here: Path) -> None:
    (here / "in").mkdir()
    write("in/model.safetensors", {"w": normal((4, 6)), "b": normal((4,), seed=1), "big": normal((900, 2), seed=2)})
    Path("in/config.json").write_text('{"a": 1}')


def plan(path: str = "delta", by: float = 2) -> bs.Plan:
    steps = [{"scale_": {"target": "w", "by": by}}, {"move": {"from": "b", "to": "c"}}]
    output = {"path": path, "format": "delta", "overwrite": True}
    return bs.load({"inputs": ["base::in"], "transforms": steps, "output": output})


def tensors_of_lock() -> dict[str, Any]:
    return json.loads(Path(LOCK).read_text())["output"]["tensors"]


def change(path: str, name: str, edit: Any = lambda x: x + 1) -> None:
    write(path, {n: edit(a) if n == name else a for n, a in read(path).items()})


def test_every_tensor_of_the_whole_has_the_digest_that_a_whole_output_has():
    plan().run(lock=True)
    bs.load({"inputs": ["m::in + delta"], "output": "whole/"}).run(lock=True)
    whole = json.loads(Path("whole/brainsurgery.lock.json").read_text())["output"]["tensors"]
    assert {n: t["digest"] for n, t in tensors_of_lock().items()} == {n: t["digest"] for n, t in whole.items()}


def test_the_lock_says_what_the_base_holds():
    plan().run(lock=True)
    assert [name for name, tensor in tensors_of_lock().items() if tensor.get("kept")] == ["c", "big"]
    assert bs.blame("delta", "c") == ("c", "f32[4]", ("base::b",), ((1, {"move": {"from": "b", "to": "c"}}),))
    assert bs.blame("in + delta", "big").inputs == ("base::big",)


def test_a_delta_carries_a_lock_unasked_and_nothing_more_is_read_for_it():
    bytes_read = []
    for lock in (False, None):
        files = Files(overwrite=True)
        plan().run(world=files, lock=lock)
        bytes_read.append(files.bytes_read)
    assert bytes_read[0] == bytes_read[1]
    assert "digest" not in json.dumps(tensors_of_lock()) and bs.verify("delta") == (LOCK, "delta", 3, (), True)


@pytest.mark.parametrize("lock", [True, None], ids=["with digests", "of headers"])
def test_a_delta_with_its_lock_is_read_and_replaced_as_before(lock: bool | None):
    plan().run(lock=lock)
    plan(by=3).run(lock=lock)
    np.testing.assert_array_equal(np.asarray(bs.open("in + delta")["w"]), normal((4, 6)) * 3)
    assert bs.replay("delta").ok and bs.verify("in + delta").ok


@pytest.mark.parametrize(("damage", "told"), [
    (lambda: change("delta/delta.safetensors", "w"), "tensor 'w' (f32[4,6]) has other elements"),
    (lambda: change("delta/delta.safetensors", "w", lambda x: x[:2]), "tensor 'w' is f32[2,6], and was f32[4,6]"),
    (lambda: Path("delta/config.json").write_text('{"a": 2}'), "file 'config.json' has another SHA-256"),
], ids=["elements", "shape", "side file"])  # fmt: skip
def test_verify_names_what_differs_in_the_delta(damage: Any, told: str):
    plan().run(lock=True)
    damage()
    assert told in bs.verify("delta").differences


def test_verify_notices_another_manifest():
    plan().run(lock=True)
    path = Path("delta/brainsurgery.delta.json")
    path.write_text(path.read_text().replace('"c": "b"', '"d": "b"'))
    found = bs.verify("delta").differences
    assert {"tensor 'c' (f32[4]) is missing", "file 'brainsurgery.delta.json' has another SHA-256"} <= set(found)


def test_a_tensor_that_went_to_the_other_part_is_noticed():
    plan().run()
    shutil.copytree("delta", "other")
    bs.load({"inputs": ["base::in"], "transforms": [{"move": {"from": "b", "to": "c"}}, {"scale_": {"target": "big",
             "by": 2}}], "output": {"path": "delta", "format": "delta", "overwrite": True}}).run()  # fmt: skip
    shutil.copy("other/brainsurgery.lock.json", LOCK)
    differences = bs.verify("delta").differences
    assert "tensor 'w' is in the base, and was in the delta" in differences
    assert "tensor 'big' is in the delta, and was in the base" in differences


def test_a_base_that_changed_is_noticed():
    plan().run(lock=True)
    change("in/model.safetensors", "big", lambda x: np.where(np.arange(1800).reshape(900, 2) == 900, 7, x))
    assert bs.verify("delta").ok
    assert bs.verify("in + delta").differences == ("tensor 'big' (f32[900,2]) has other elements",)
    told = "input 'base': tensor 'big' (f32[900,2]) has other elements"
    assert told in bs.verify("delta", inputs=True).differences and told in "; ".join(bs.replay("delta").differences)
    with pytest.raises(bs.PlanError, match="'big'"):
        plan("again").run(locked="delta")


def test_a_locked_run_publishes_what_agrees_alone():
    plan().run(lock="locks/d.json")
    assert plan("again").run(locked="delta").published and plan("third").run(locked="locks/d.json").published
    with pytest.raises(bs.PlanError, match="the plan differs from step 1 on"):
        plan("other", by=4).run(locked="delta")
    assert not Path("other").exists()


def test_a_delta_of_a_sum_has_a_lock():
    plan().run()
    steps = [{"fill_": {"target": "c", "mode": "constant", "value": 1}}]
    output = {"path": "second", "format": "delta"}
    bs.load({"inputs": ["m::in + delta"], "transforms": steps, "output": output}).run(lock=True)
    assert bs.verify("in + delta + second").ok and bs.replay("second").ok


def test_a_delta_that_changes_nothing_has_a_lock():
    output = {"path": "delta", "format": "delta"}
    bs.load({"inputs": ["base::in"], "output": output}).run(lock=True)
    assert bs.verify("delta").ok and not bs.verify("delta").headers_only and bs.replay("delta").ok
