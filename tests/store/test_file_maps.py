"""A source that is cut off while a library encodes from a map of it: an error, where the process used to die."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io import encoded, file_maps
from brainsurgery_jax.store.io.file_maps import FileMap, guard
from brainsurgery_jax.store.io.local import open_files
from tests.checkpoints import write

pytestmark = pytest.mark.skipif(not file_maps._CAN_GUARD, reason="SIGBUS is caught on 64-bit Linux alone")

SIZE = 3 << 20
"""Elements of each tensor: many pages, and more than libraries take at a time."""


def cut_when_encoding(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Cuts a source off when its maps are made and nothing of them has been read."""
    arrays = encoded.EncodedWriter._arrays

    def cut(self: encoded.EncodedWriter, maps: Any, names: Any) -> Any:
        found = arrays(self, maps, names)
        os.truncate(path, 5000)
        return found

    monkeypatch.setattr(encoded.EncodedWriter, "_arrays", cut)


OUTPUTS: dict[str, dict[str, Any]] = {
    "torch": {"path": "out.pt"},
    "dcp": {"path": "out", "format": "dcp"},
    "orbax": {"path": "out", "format": "orbax"},
    "orbax, compressed": {"path": "out", "format": "orbax", "options": {"compression": True}},
    "npz": {"path": "out.npz"},
    "npz, compressed": {"path": "out.npz", "options": {"compression": True}},
    "HDF5": {"path": "out.h5"},
}


# Where its write fails, orbax leaves coroutines that complain when they are collected: here, not in a later test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_source_that_is_cut_off_while_it_is_encoded_is_an_error(
    kind: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"a": np.ones((3, SIZE // 3), np.float32), "b": np.ones(SIZE, np.float32)}
    source = write(here / "in.safetensors", tensors)
    cut_when_encoding(monkeypatch, source)
    plan = bs.load({"inputs": [str(source)], "transforms": [], "output": OUTPUTS[kind]})
    with pytest.raises(StoreError, match=r"in\.safetensors: changed while running"):
        plan.run(durable=False)
    gc.collect()
    assert os.listdir(here) == ["in.safetensors"]


def file_map(path: Path, size: int) -> FileMap:
    path.write_bytes(b"x" * size)
    (file,) = open_files([str(path)])
    return FileMap(file)


def test_what_is_behind_the_end_of_a_file_reads_as_zeros_and_is_known_to_be_lost(tmp_path: Path) -> None:
    one, other = (file_map(tmp_path / name, 10_000) for name in ("one", "other"))
    os.truncate(tmp_path / "one", 0)
    with guard([one, other]):
        assert bytes(one.buffer) == bytes(10_000)
        assert bytes(other.buffer) == b"x" * 10_000
    assert (one.is_lost, other.is_lost) == (True, False)
    with pytest.raises(StoreError, match="changed while running"):
        one.verify()
    other.verify()


def test_a_file_that_could_not_be_read_is_told_of_though_it_looks_as_before(tmp_path: Path) -> None:
    lost = file_map(tmp_path / "file", 10_000)
    lost.lose()
    with pytest.raises(StoreError, match=r"file: could not be read while the output was written.*\n.*Check the disk"):
        lost.verify()
    file_map(tmp_path / "file", 10_000).verify()  # as the next run finds it, once the disk is in order


OTHERS = """
import mmap, os, sys
from pathlib import Path
from tests.store.test_file_maps import file_map, guard
good = file_map(Path(sys.argv[1], "good"), 5000)
bad = file_map(Path(sys.argv[1], "bad"), 5000)
os.truncate(bad.file.name, 0)
with guard([good]):
    pass
with guard([good]):
    bytes(bad.buffer)
"""


def test_a_fault_of_another_map_ends_the_process_as_before(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OTHERS, str(tmp_path)], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (-signal.SIGBUS, b"")


def test_a_file_that_is_shorter_already_is_no_longer_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(9000))
    (file,) = open_files([str(tmp_path / "file")])
    assert file.size == 9000
    os.truncate(tmp_path / "file", 10)
    with pytest.raises(StoreError, match="changed while running"):
        FileMap(file)
