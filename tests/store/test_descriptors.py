"""Descriptors that are shared, capped, and checked when a file is opened again."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.descriptors import Descriptors
from tests.checkpoints import write


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for name in "abc":
        (tmp_path / name).write_text(name)
    return [str(tmp_path / name) for name in "abc"]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_least_recently_used_file_is_closed_first(paths: list[str]) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True, limit=2)
    with files.lease(0) as a, files.lease(1) as b:
        pass
    with files.lease(0), files.lease(2):
        assert is_open(a)
        assert not is_open(b)
    files.close()


def test_a_file_in_use_is_never_closed_under_its_user(paths: list[str]) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True, limit=1)
    with ExitStack() as stack:
        leased = [stack.enter_context(files.lease(n)) for n in range(3)]
        assert [os.pread(fd, 1, 0) for fd in leased] == [b"a", b"b", b"c"]
        files.close()
        assert all(map(is_open, leased))
    assert not any(map(is_open, leased))


def test_a_file_that_was_replaced_is_noticed_when_it_is_opened_again(paths: list[str], tmp_path: Path) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True, limit=1)
    with files.lease(0):
        pass
    with files.lease(1):
        pass
    (tmp_path / "new").write_text("a")
    os.replace(tmp_path / "new", paths[0])
    with pytest.raises(StoreError, match=r"a: changed while running"), files.lease(0):
        pass
    files.close()


def test_a_closed_set_says_so(paths: list[str]) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True)
    files.close()
    with pytest.raises(StoreError, match=r"a: was closed, and is used again"), files.lease(0):
        pass


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    files = Descriptors([str(tmp_path / "none")], os.O_RDONLY, watch=True)
    with pytest.raises(StoreError, match=r"none: could not open the file: No such file"), files.lease(0):
        pass


def test_files_that_nobody_closes_are_closed_when_nobody_has_them(paths: list[str]) -> None:
    files = Descriptors(paths, os.O_RDONLY, watch=True)
    with files.lease(0) as fd:
        pass
    assert is_open(fd)
    del files
    gc.collect()
    assert not is_open(fd)


SHARDS = 60
MANY = """
import sys
import resource
from brainsurgery_jax.cli import app
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv.pop(1)),) * 2)
app.main()
"""


def run_with_few(plan: str, limit: int) -> tuple[int, str]:
    """The exit code and the words of a run that may have so many files open."""
    Path("plan.yaml").write_text(plan)
    command = [sys.executable, "-c", MANY, str(limit), "plan.yaml", "--no-fsync", "--lock", "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("output", ["out.safetensors", "{path: out, shard: 64B}", "out.pt"])
def test_a_process_that_may_open_few_files_reads_and_writes_many(here: Path, output: str, factor: int) -> None:
    Path("in").mkdir()
    for i in range(SHARDS):
        write(f"in/model-{i + 1:05d}-of-{SHARDS:05d}.safetensors", {f"w{i}": np.full((4, 4), i, np.float32)})
    steps = f"[{{scale_: {{target: '.*', by: {factor}}}}}]" if factor > 1 else "[]"
    plan = f"inputs: [in]\ntransforms: {steps}\noutput: {output}\n"
    assert run_with_few(plan, 24) == (0, "")
    path = "out" if "{" in output else output
    found = bs.open(path)
    assert all(np.all(np.asarray(found[f"w{i}"]) == factor * i) for i in range(SHARDS)) and bs.verify(path).ok


def test_many_inputs_may_be_open_one_after_the_other(here: Path) -> None:
    for i in range(SHARDS):
        write(f"i{i}.safetensors", {f"w{i}": np.full((4, 4), i, np.float32)})
    inputs = ", ".join(f"a{i}::i{i}.safetensors" for i in range(SHARDS))
    moves = ", ".join(f"{{move: {{from: 'a{i}::w{i}', to: 'a0::w{i}'}}}}" for i in range(1, SHARDS))
    plan = f"inputs: [{inputs}]\ntransforms: [{moves}]\noutput: {{path: out.safetensors, alias: a0}}\n"
    assert run_with_few(plan, 24) == (0, "")
    assert len(bs.open("out.safetensors")) == SHARDS


def test_orbax_without_room_for_its_files_is_refused_before_the_work(here: Path) -> None:
    write("in.safetensors", {"w": np.ones((4, 4), np.float32)})
    code, told = run_with_few("inputs: [in.safetensors]\noutput: {path: out, format: orbax}\n", 22)
    assert code == 3 and "out: could not open 24 files, which orbax needs: Too many open files" in told
    assert "Traceback" not in told and sorted(os.listdir()) == ["in.safetensors", "plan.yaml"]
    assert run_with_few("inputs: [in.safetensors]\noutput: {path: out, format: orbax}\n", 64)[0] == 0
