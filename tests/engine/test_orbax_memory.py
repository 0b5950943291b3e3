"""However large a checkpoint, little of it is in memory on its way to orbax and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import normal, write
from tests.measured import measured
from tests.sampled import sampled

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory apart")

SCALE = [{"scale_": {"target": ".*", "by": 2}}]
MODEL = 160 << 20
MOST = 64 << 20
"""Bytes held: far less than the model, and more than blocks on their way and what libraries make at their first use."""


def plan(folder: Path, source: Path, steps: Any, **output: Any) -> dict[str, Any]:
    path = str(folder / f"out-{source.name.partition('.')[0]}")
    return {"inputs": [f"m::{source}"], "transforms": steps, "output": {"path": path, **output}}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A checkpoint of many megabytes, and a tiny one of the same names."""
    some = normal((1 << 20,))
    large = {"e": np.resize(some, (20_480, 1024))} | {f"h.{i}": np.resize(some, (2048, 1024)) for i in range(10)}
    tiny = {name: np.ascontiguousarray(array[:9, :9]) for name, array in large.items()}
    assert sum(array.nbytes for array in large.values()) == MODEL
    return [write(tmp_path / "large.safetensors", large), write(tmp_path / "tiny.safetensors", tiny)]


@pytest.mark.parametrize("steps", [[], SCALE], ids=["as it is", "scaled"])
def test_to_orbax(tmp_path: Path, models: list[Path], steps: Any) -> None:
    large, tiny = (plan(tmp_path, source, steps, format="orbax") for source in models)
    assert sampled(large, tiny) < MOST


@pytest.mark.parametrize("steps", [[], SCALE], ids=["as it is", "scaled"])
def test_from_orbax(tmp_path: Path, models: list[Path], steps: Any) -> None:
    for source in models:
        bs.load(plan(tmp_path, source, [], format="orbax")).run(durable=False)
    large, tiny = (plan(tmp_path, tmp_path / f"out-{s.name.partition('.')[0]}", steps) for s in models)
    assert sampled(large, tiny) < MOST


@pytest.mark.parametrize("options", [{}, {"compression": True}, {"compression": True, "chunk": "1MB"}], ids=str)
def test_reading_orbax_holds_what_is_projected(tmp_path: Path, models: list[Path], options: dict[str, Any]) -> None:
    for source in models:
        bs.load(plan(tmp_path, source, [], format="orbax", options=options)).run(durable=False)
    large, tiny = (plan(tmp_path, tmp_path / f"out-{s.name.partition('.')[0]}", SCALE) for s in models)
    found = measured(large, tiny)
    assert found.anonymous <= found.in_all < 3 * max(found.anonymous, 64 << 20), found


@pytest.mark.parametrize("options", [{"compression": True}, {"compression": True, "chunk": "1MB"}], ids=str)
def test_writing_compressed_orbax_holds_what_is_projected(
    tmp_path: Path, models: list[Path], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the threads of tensorstore keep of freed memory is not projected, and depends on which of them was free.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    large, tiny = (plan(tmp_path, source, [], format="orbax", options=options) for source in models)
    projected = bs.explain(bs.load(large)).peak_in_all
    assert sampled(large, tiny) <= projected < 224 << 20


def test_a_budget_without_room_for_what_orbax_holds_is_refused_before_anything_is_read(
    tmp_path: Path, models: list[Path]
) -> None:
    compressed = plan(tmp_path, models[0], [], format="orbax", options={"compression": True})
    with pytest.raises(bs.PlanError, match=r"needs .* of memory, the budget is 95"):
        bs.load(compressed).run(memory=100_000_000)
    assert not (tmp_path / "out-large").exists()


def test_a_budget_without_room_for_decoded_chunks_is_refused_before_anything_is_read(
    tmp_path: Path, models: list[Path]
) -> None:
    large, _ = models
    bs.load(plan(tmp_path, large, [], format="orbax", options={"compression": True})).run(durable=False)
    compressed = bs.load(plan(tmp_path, tmp_path / "out-large", SCALE))
    with pytest.raises(bs.PlanError, match=r"needs .* of memory, the budget is 95"):
        compressed.run(memory=100_000_000)
    assert compressed.run(memory=500_000_000, durable=False).published
