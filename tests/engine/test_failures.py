"""A run that fails, or is stopped, leaves everything as it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.api import run
from brainsurgery_jax.engine.events import Advanced, Finishing, Started, Wrote
from brainsurgery_jax.errors import PlanError, StoreError
from tests.checkpoints import normal, plan_of, read, write

SCALE = {"scale_": {"target": "w", "by": 2}}


def folder_of(plan: dict[str, Any]) -> Path:
    return Path(plan["output"]["path"]).parent


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_failing_assert_about_values_leaves_no_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"w": normal((5, 5))}, [SCALE, {"assert": {"iszero": "w"}}])
    with pytest.raises(PlanError, match="'w' is not zero everywhere"):
        bs.load(plan).run(durable=False)
    assert files(folder_of(plan)) == ["model.safetensors"]


def test_a_kernel_that_refuses_its_values_leaves_no_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"w": np.array([1, 3], np.int8)}, {"scale_": {"target": "w", "by": 0.5}})
    with pytest.raises(PlanError, match="scaling this integer tensor is not exact"):
        bs.load(plan).run(durable=False)
    assert files(folder_of(plan)) == ["model.safetensors"]


@pytest.mark.parametrize("event", [Started, Wrote])
def test_an_interrupted_run_leaves_no_file(event: type, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"w": normal((50, 50)), "v": normal((9, 9))}, SCALE)

    def interrupt(told: Any) -> None:
        if isinstance(told, event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bs.load(plan), listen=interrupt, durable=False)
    assert files(folder_of(plan)) == ["model.safetensors"]


class Signal:
    """A stop signal that is set by a listener after so many parts of the work."""

    def __init__(self, parts: int):
        self.left = parts
        self.advanced: list[Advanced] = []

    def is_set(self) -> bool:
        return self.left <= 0

    def hear(self, told: Any) -> None:
        if isinstance(told, Advanced):
            self.advanced.append(told)
            self.left -= 1


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_a_run_whose_stop_event_is_set_ends_between_items_and_leaves_no_file(parts: int, tmp_path: Path) -> None:
    steps = [{"phlora_": {"target": "a", "rank": 2}}, SCALE]
    plan = plan_of(tmp_path, {"a": normal((50, 50)), "w": normal((50, 50)), "v": normal((9, 9))}, steps)
    stop = Signal(parts)
    with pytest.raises(bs.Stopped, match="the run was stopped by its `stop` event"):
        bs.load(plan).run(listen=stop.hear, stop=stop, durable=False)
    assert len(stop.advanced) == parts
    assert files(folder_of(plan)) == ["model.safetensors"]


def test_the_numbers_that_a_plan_needs_first_are_stopped_too(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"w": normal((50, 50))}, {"phlora": {"target": "w", "target_a": "a", "target_b": "b",
                   "rank": {"energy": 0.5}}})  # fmt: skip
    events: list[Any] = []
    with pytest.raises(bs.Stopped):
        bs.load(plan).run(listen=events.append, stop=Signal(0), durable=False)
    assert events == []


def test_a_stop_event_that_is_set_after_the_last_item_stops_nothing(tmp_path: Path) -> None:
    plan, stop = plan_of(tmp_path, {"w": normal((50, 50))}, SCALE), Event()

    def hear(told: Any) -> None:
        if isinstance(told, Finishing):
            stop.set()

    report = bs.load(plan).run(listen=hear, stop=stop, durable=False)
    assert [path for path, _, _ in report.published] == [plan["output"]["path"]]


def test_the_parts_of_each_item_add_up_to_its_bytes_and_tensors_name_their_item(tmp_path: Path) -> None:
    tensors = {"long": normal((3000, 1000)), "w": normal((50, 50)), "copied": normal((9, 9))}
    steps = [{"scale_": {"target": "long|w", "by": 2}}, {"assert": {"finite": "long"}}]
    plan, events = plan_of(tmp_path, tensors, steps), list[Any]()
    bs.load(plan).run(listen=events.append, durable=False)
    (started,) = (e for e in events if isinstance(e, Started))
    found = Counter[str]()
    for event in events:
        if isinstance(event, Advanced):
            found[event.item] += event.nbytes
    assert found == Counter(started.items)
    keys = {e.name: e.item for e in events if isinstance(e, Wrote)}
    assert set(keys) == set(tensors) and set(keys.values()) <= set(started.items)
    assert started.items[keys["copied"]] == 2 * tensors["copied"].nbytes


def test_every_pass_of_a_large_fold_counts_to_its_item(tmp_path: Path) -> None:
    step = {"compute": {"from": {"x": "w"}, "to": "m", "expr": "quantile(x, 0.5)"}}
    plan, events = plan_of(tmp_path, {"w": normal((4200, 4100))}, step), list[Any]()
    bs.load(plan).run(listen=events.append, durable=False)
    (started,) = (e for e in events if isinstance(e, Started))
    (_, passes), *_ = Counter(e.item for e in events if isinstance(e, Advanced)).most_common()
    assert passes == 2
    assert sum(e.nbytes for e in events if isinstance(e, Advanced)) == sum(started.items.values())


def test_an_interrupted_run_keeps_what_it_would_have_replaced(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"w": normal((50, 50))}, SCALE)
    plan["output"] |= {"overwrite": True}
    old = write(plan["output"]["path"], {"old": normal((3,))}).read_bytes()

    def interrupt(told: Any) -> None:
        if isinstance(told, Wrote):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bs.load(plan), listen=interrupt, durable=False)
    assert Path(plan["output"]["path"]).read_bytes() == old
    assert files(folder_of(plan)) == ["model.safetensors", "out.safetensors"]


def test_an_input_that_changes_during_the_run_is_noticed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"w": normal((50, 50))}, SCALE)
    source = folder_of(plan) / "model.safetensors"

    def meddle(told: Any) -> None:
        if isinstance(told, Wrote):
            with source.open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"x")

    with pytest.raises(StoreError, match="chang"):
        run(bs.load(plan), listen=meddle, durable=False)
    assert files(folder_of(plan)) == ["model.safetensors"]


def test_an_output_may_replace_its_own_input(tmp_path: Path) -> None:
    w, untouched = normal((300, 200)), normal((100, 100), seed=1)
    source = write(tmp_path / "m.safetensors", {"w": w, "untouched": untouched})
    output = {"path": str(source), "overwrite": True}
    bs.load({"inputs": [str(source)], "transforms": [SCALE], "output": output}).run(durable=False)
    made = read(source)
    assert (made["w"] == 2 * w).all()
    assert (made["untouched"] == untouched).all()


def test_an_output_does_not_replace_its_own_input_unasked(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", {"w": normal((3,))})
    before = source.read_bytes()
    with pytest.raises(PlanError, match="exists"):
        bs.load({"inputs": [str(source)], "transforms": [SCALE], "output": str(source)}).run()
    assert source.read_bytes() == before
