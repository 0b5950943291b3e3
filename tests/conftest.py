"""What every test runs under: one BLAS thread, JAX on the CPU, and no silent promotion of dtypes or ranks.

All of it is said in the environment, before anything loads JAX, so that a test which never needs JAX never loads it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
