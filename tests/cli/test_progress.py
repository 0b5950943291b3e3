"""What a run prints of its progress."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainsurgery_jax.cli.progress import Plain
from brainsurgery_jax.engine.events import Started, Wrote
from brainsurgery_jax.pace import describe_progress, memory_held, show_time
from tests import checkpoints
from tests.cli.conftest import Command


def test_a_tensor_is_one_line_however_many_blocks_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Plain(quiet=False, verbose=True)
    plain(Started(96, 2, {"a": 64, "b": 32}))
    for name, nbytes in (("a", 32), ("b", 16), ("a", 32), ("b", 16)):
        plain(Wrote(name, nbytes))
    assert capsys.readouterr().err.splitlines() == ["2 tasks, 96 B to write", "a: 64 B", "b: 32 B"]


def test_verbose_prints_a_line_for_each_tensor_of_a_run(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "m.safetensors", {"w": np.ones(3_000_000, np.float32), "v": np.ones(2, np.float32)})
    (tmp_path / "plan.yaml").write_text(
        "inputs: [m.safetensors]\ntransforms: [scale_: {target: .*, by: 2}]\noutput: o.safetensors\n"
    )
    command = [sys.executable, "-m", "brainsurgery_jax", "plan.yaml", "-v"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("w:", "v:"))]
    assert sorted(lines) == ["v: 8 B", "w: 11.4 MB"]


def test_the_bar_tells_bytes_throughput_times_and_memory_in_one_unit() -> None:
    told = describe_progress(1 << 30, 3 << 30, 65.0, 512 << 20, 200 << 20)
    assert told == "1.0 GB of 3.0 GB, 512.0 MB/s, 1:05, 0:04 left, memory 200.0 MB"


def test_the_bar_leaves_out_what_is_not_known() -> None:
    assert describe_progress(0, None, 0.4, None, None) == "0 B, 0:00"
    assert describe_progress(8, 8, 3.0, 4.0, None) == "8 B of 8 B, 4 B/s, 0:03"


def test_times_have_hours_only_if_they_need_them() -> None:
    assert [show_time(seconds) for seconds in (0.9, 59, 61, 3600 * 27 + 5)] == ["0:00", "0:59", "1:01", "27:00:05"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells a process what it holds this way")
def test_the_memory_is_what_the_process_holds() -> None:
    before = memory_held()
    with mmap.mmap(-1, 64 << 20) as held:  # new pages, whatever freed memory the process keeps
        np.frombuffer(held, np.uint8)[:] = 1
        after = memory_held()
        assert before is not None and after is not None
        assert after - before > len(held) // 2


def test_a_conversion_tells_each_tensor_that_is_written_where_this_is_asked(command: Command):
    done = command("convert", "base.safetensors", "out.npz", "--verbose")
    assert done.code == 0
    told = [line for line in done.err.splitlines() if line.startswith(("h.", "ids"))]
    assert sorted(told) == ["h.0.w: 24 B", "h.1.w: 24 B", "ids: 32 B"]
    assert "h.0.w" not in command("convert", "base.safetensors", "again.npz").err
