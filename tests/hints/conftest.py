"""A folder for tests of hints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import checkpoints
from tests.hints.calls import W


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a small checkpoint in it."""
    monkeypatch.chdir(tmp_path)
    checkpoints.write("m.safetensors", {"w": W, "ids": np.array([1, 2])})
    return tmp_path
