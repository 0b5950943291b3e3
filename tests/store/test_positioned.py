"""Bytes on their way to the disk: what is begun early, and what is left to the system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.io import local, positioned
from brainsurgery_jax.store.safetensors.layout import layout_of
from brainsurgery_jax.store.safetensors.source import open_safetensors
from brainsurgery_jax.store.safetensors.writer import SafetensorsWriter


def ranges_begun(patch: pytest.MonkeyPatch, folder: Path, *, durable: bool) -> tuple[list[tuple[int, int]], int]:
    """The ranges that a writer begins to flush while one tensor is put and one is copied, and where its data start."""
    begun: list[tuple[int, int]] = []
    patch.setattr(local, "begin_flush", lambda fd, offset, nbytes: begun.append((offset, nbytes)))
    avals = {"x": Aval((3,), BY_NAME["i64"]), "y": Aval((2,), BY_NAME["i64"])}
    for name in ("in", "out"):
        path = str(folder / f"{name}.safetensors")
        layout = layout_of(path, avals, WriteOptions(False, {}))
        writer = SafetensorsWriter(Staged(path, path), layout, durable=durable and name == "out")
        writer.put("x", 0, np.arange(3))
        if name == "in":
            writer.put("y", 0, np.arange(2))
        else:
            run = open_safetensors(str(folder / "in.safetensors")).file_run("y", 0, 2)
            assert run is not None
            writer.copy("y", 0, run)
        writer.finish()
    return begun, (folder / "out.safetensors").stat().st_size - 40


def test_what_is_written_goes_to_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, start = ranges_begun(monkeypatch, tmp_path, durable=True)
    assert begun == [(start, 24), (start + 24, 16)]


def test_without_fsync_the_system_may_take_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranges_begun(monkeypatch, tmp_path, durable=False)[0] == []


def test_only_long_runs_are_worth_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def call(fd: int, offset: Any, nbytes: Any, flags: Any) -> None:
        calls.append((fd, offset, nbytes, flags))

    monkeypatch.setattr(positioned, "_sync_file_range", lambda: call)
    positioned.begin_flush(5, 7, positioned.EARLY - 1)
    positioned.begin_flush(5, 1 << 40, positioned.EARLY)
    assert calls == [(5, 1 << 40, positioned.EARLY, 2)]


def test_a_system_without_the_call_or_a_file_that_takes_no_advice_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    out, into = os.pipe()
    positioned.begin_flush(into, 0, 1 << 30)
    monkeypatch.setattr(positioned, "_sync_file_range", lambda: None)
    positioned.begin_flush(into, 0, 1 << 30)
    os.close(out)
    os.close(into)


def test_rows_go_to_places_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset)
    )  # a system that takes little
    path = str(tmp_path / "out.safetensors")
    layout = layout_of(path, {"x": Aval((3, 2, 2), BY_NAME["f32"])}, WriteOptions(False, {}))
    made = SafetensorsWriter(Staged(path, path), layout)
    for layer in range(2):
        starts = np.arange(3) * 4 + 2 * layer
        made.put_rows("x", starts[::-1], np.array([[n, n + 1] for n in starts[::-1]], np.float32))
    made.finish()
    assert open_safetensors(path).read("x").reshape(-1).tolist() == list(range(12))
