"""Fingerprints: equal for a checkpoint that nobody touched, another one for whatever a stamp or a header can tell."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.store.base import Fingerprint
from brainsurgery_jax.store.detect import open_source
from tests.checkpoints import counting, write

ARRAYS = {"a": counting((3, 2), np.float32), "b": counting((4,), np.int32)}
PATHS = ("m.safetensors", "m.pt", "m.npz", "orbax", "dcp")


def saved(folder: Path, path: str, arrays: dict[str, np.ndarray]) -> str:
    bs.save(str(folder / path), arrays, durable=False, overwrite=True, format=None if "." in path else path)
    return str(folder / path)


def fingerprint(path: str) -> Fingerprint:
    return open_source(path).fingerprint


@pytest.mark.parametrize("path", PATHS)
def test_a_checkpoint_that_nobody_touched_has_the_same_fingerprint(tmp_path: Path, path: str) -> None:
    place = saved(tmp_path, path, ARRAYS)
    assert fingerprint(place) == fingerprint(place)
    assert fingerprint(place).stamps


@pytest.mark.parametrize("path", PATHS)
def test_one_that_is_written_again_has_another(tmp_path: Path, path: str) -> None:
    place = saved(tmp_path, path, ARRAYS)
    before = fingerprint(place)
    saved(tmp_path, path, ARRAYS)
    after = fingerprint(place)
    assert before != after and before.header == after.header


def test_a_modification_time_that_is_set_back_does_not_hide_another_header(tmp_path: Path) -> None:
    place = tmp_path / "m.safetensors"
    write(place, {"a": np.zeros(4, np.float32)})
    os.utime(place, ns=(1, 1))
    before, inode = fingerprint(str(place)), place.stat().st_ino
    place.write_bytes(place.read_bytes().replace(b'"a"', b'"b"'))
    os.utime(place, ns=(1, 1))
    after, now = fingerprint(str(place)), place.stat()
    assert (now.st_ino, now.st_mtime_ns) == (inode, 1) and before.header != after.header
    assert before.stamps != after.stamps  # the time of the last change of the inode cannot be set back


def test_a_part_has_the_stamps_of_the_whole_and_a_header_of_its_own(tmp_path: Path) -> None:
    place = saved(tmp_path, "m.npz", {"a.x": ARRAYS["a"], "b.x": ARRAYS["b"]})
    part, whole = fingerprint(f"{place}::a"), fingerprint(place)
    assert part.stamps == whole.stamps and part.header != whole.header
