"""Formats that are written from start to end take little memory, however large the tensors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import write

LARGE = 48 << 20
"""Bytes of each of four tensors."""


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched() -> Iterator[list[int]]:
    """How much memory of its own the process had at each of many moments, pages of mapped files left out."""
    seen, done = [anonymous()], Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(anonymous())
            time.sleep(0.002)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def run(folder: Path, path: str, count: int) -> None:
    folder.mkdir()
    source = write(folder / "m.safetensors", {name: np.ones(count, np.float32) for name in "abcd"})
    output: dict[str, Any] = {"path": f"{folder}/{path}"} | ({"format": "dcp"} if path.endswith("/") else {})
    plan = bs.load({"inputs": [str(source)], "transforms": [{"scale_": {"target": "a", "by": 2}}], "output": output})
    with watched() as seen:
        plan.run(durable=False)
    assert max(seen) - seen[0] < LARGE


@pytest.mark.parametrize("path", ["m.npz", "m.pt", "m.dcp/"])
def test_an_output_is_never_held_as_a_whole(tmp_path: Path, path: str) -> None:
    source = write(tmp_path / "m.safetensors", {"a": np.ones(4, np.float32)})
    warm = {"inputs": [str(source)], "transforms": [], "output": {"path": f"{tmp_path}/{path}"}}
    warm["output"] |= {"format": "dcp"} if path.endswith("/") else {}
    bs.load(warm).run(durable=False)  # libraries are loaded
    run(tmp_path / "large", path, LARGE // 4)
