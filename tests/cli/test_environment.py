"""The process around a run: set up for speed, and left alone where the user has set it up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainsurgery_jax.cli import environment
from tests.checkpoints import write
from tests.cli.conftest import environment as with_variables

RUN = """
import resource
from brainsurgery_jax.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("FAULTS", resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(place: Path, **variables: str) -> int:
    line = [sys.executable, "-c", RUN, "scale.yaml", "--overwrite", "--no-fsync"]
    done = subprocess.run(line, cwd=place, env=with_variables(**variables), capture_output=True, text=True, check=True)
    return int(done.stdout.rpartition("FAULTS")[2])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator alone is told to keep freed memory")
def test_the_memory_of_freed_blocks_is_used_again(here: Path):
    write("base.safetensors", {f"h.{i}": np.ones((1 << 20), np.float32) for i in range(16)})
    Path("scale.yaml").write_text(
        "inputs: [base.safetensors]\ntransforms: [{scale_: {target: '.*', by: 2}}]\noutput: out.safetensors\n"
    )
    given_back = page_faults(here, MALLOC_MMAP_THRESHOLD_="131072")
    pages = 16 * (4 << 20) // 4096
    assert page_faults(here) < given_back - pages


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_an_allocator_that_the_user_has_set_up_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str):
    called = []
    monkeypatch.setattr(environment, "keep_freed_memory", lambda: called.append(True))
    environment.arrange({name: "1"}, compile_cache=False)
    assert not called
    environment.arrange({}, compile_cache=False)
    assert called


def test_what_the_user_has_set_is_kept():
    chosen = {"OPENBLAS_NUM_THREADS": "4", "JAX_COMPILATION_CACHE_DIR": "elsewhere", "MALLOC_ARENA_MAX": "1"}
    arranged = dict(chosen)
    environment.arrange(arranged, compile_cache=True)
    assert arranged | chosen == arranged
