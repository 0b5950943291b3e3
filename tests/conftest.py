"""What every test runs under: one BLAS thread, JAX on the CPU, no silent promotion of dtypes or ranks, no clock, and
signals that arrive.

All of it is said in the environment, before anything loads JAX, so that a test which never needs JAX never loads it.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test depends on time. `default` tries the same cases in every run; `search` tries new ones, and more of them
# (`make test-only ARGS='--hypothesis-profile search'`).
_UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _UNTIMED, derandomize=True, database=None)
settings.register_profile("search", _UNTIMED, max_examples=1000, print_blob=True)
settings.load_profile("default")

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


# A shell starts what runs in the background with signals ignored, and a program keeps that: here Ctrl-C stops programs.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="module", autouse=True)
def only_own_garbage() -> Iterator[None]:
    """What the modules so far have left, such as JAX's caches of compiled functions, is not looked through again for
    garbage: of thousands of tests it is so much that the collector takes more time than they do."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
