"""What a report of a checkpoint asks of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainsurgery_jax.checkpoint import Checkpoint
from brainsurgery_jax.reports.inspection import report_inspection
from brainsurgery_jax.store.key_tree import KeyTree
from tests.checkpoints import write


@pytest.mark.parametrize("count", [3, 30])
def test_the_tree_is_built_once_however_many_tensors_there_are(here: Path, monkeypatch: pytest.MonkeyPatch, count: int):
    built: list[int] = []
    choose = KeyTree.choose

    def counting(self: KeyTree, *names: dict[str, str]) -> KeyTree:
        built.append(1)
        return choose(self, *names)

    monkeypatch.setattr(KeyTree, "choose", counting)
    path = write(here / "x.safetensors", {f"h.{n}.w": np.zeros(2, np.float32) for n in range(count)})
    report_inspection(Checkpoint.open(str(path)), {}, compact=True)
    assert built == [1]
