"""A run that fails, or is stopped, leaves everything as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.api import run
from brainsurgery_jax.engine.events import Started, Wrote
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
