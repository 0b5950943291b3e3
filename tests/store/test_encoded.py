"""Formats that a library writes in one go: the scratch file, memory maps of inputs, and what a failed run leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.atomic import Staged, publish, stage
from brainsurgery_jax.store.base import Held, WriteOptions
from brainsurgery_jax.store.io.encoded import EncodedWriter
from brainsurgery_jax.store.safetensors.source import SafetensorsSource, open_safetensors
from tests.checkpoints import counting, write

AVALS = {"a": Aval((2, 3), BY_NAME["float32"]), "none": Aval((0, 2), BY_NAME["int8"]), "b": Aval((5,), BY_NAME["bf16"])}


def listing(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """An encoder that writes what it was given as text."""
    target = os.path.join(path, "listing") if options.directory else path
    Path(target).write_text("\n".join(f"{name} {a.dtype} {a.tolist()}" for name, a in arrays.items()))


def writer(staged: Staged, encode: Any = listing, avals: Any = AVALS, **options: Any) -> EncodedWriter:
    return EncodedWriter(staged, avals, WriteOptions(options.pop("directory", False), {}, **options), encode)


def staged_by(made: EncodedWriter) -> Staged:
    """What a writer gives back when it is done: what it was given."""
    done = made.finish()
    assert isinstance(done, Staged)
    return done


def filled(made: EncodedWriter) -> EncodedWriter:
    made.put("b", 2, np.array([2, 3, 4], BY_NAME["bf16"].numpy))
    made.put("a", 0, counting((6,)))
    made.put("b", 0, np.array([0, 1], BY_NAME["bf16"].numpy))
    return made


def test_the_encoder_gets_all_tensors_in_order_and_the_scratch_is_removed(tmp_path: Path) -> None:
    publish([staged_by(filled(writer(stage(str(tmp_path / "out")))))])
    assert (tmp_path / "out").read_text().splitlines() == [
        "a float32 [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]", "none int8 []", "b bfloat16 [0.0, 1.0, 2.0, 3.0, 4.0]",
    ]  # fmt: skip
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_is_there_for_side_files_before_the_encoder_runs(tmp_path: Path) -> None:
    staged = stage(str(tmp_path / "out"))
    made = filled(writer(staged, directory=True))
    Path(staged.staging, "config.json").touch()
    publish([staged_by(made)])
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "listing"]


def test_the_arrays_are_maps_that_nobody_can_write_to(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def look(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
        seen.update({name: (a.flags.writeable, a.flags.owndata) for name, a in arrays.items() if a.size})
        listing(path, arrays, options)

    filled(writer(stage(str(tmp_path / "out")), look)).finish()
    assert set(seen.values()) == {(False, False)}


def test_missing_bytes_are_a_fault(tmp_path: Path) -> None:
    made = writer(stage(str(tmp_path / "out")))
    made.put("a", 0, counting((6,)))
    with pytest.raises(StoreError, match=r"tensor 'b': 0 of 10 bytes were written"):
        made.finish()


def test_abort_removes_everything_and_may_come_twice(tmp_path: Path) -> None:
    made = filled(writer(stage(str(tmp_path / "out")), directory=True))
    made.abort()
    made.abort()
    assert os.listdir(tmp_path) == []


def test_an_encoder_that_fails_names_the_destination(tmp_path: Path) -> None:
    def fail(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
        raise StoreError(path, "no")

    with pytest.raises(StoreError, match=rf"^{tmp_path}/out: no"):
        filled(writer(stage(str(tmp_path / "out")), fail)).finish()


# --- tensors that are written as an input holds them


def held(tmp_path: Path, array: np.ndarray) -> tuple[SafetensorsSource, dict[str, Any]]:
    source = open_safetensors(str(write(tmp_path / "in.safetensors", {"x": array})))
    return source, {"avals": {"y": source.header.tensors["x"].aval}, "unchanged": {"y": Held(source, "x")}}


def test_what_an_input_holds_is_taken_from_there_without_a_copy(tmp_path: Path) -> None:
    source, how = held(tmp_path, counting((4,)))
    staged = stage(str(tmp_path / "out"))
    made = writer(staged, **how)
    run = source.file_run("x", 0, 4)
    assert run is not None
    made.copy("y", 0, run)
    assert os.path.getsize(f"{staged.staging}.scratch") == 0
    publish([staged_by(made)])
    assert (tmp_path / "out").read_text() == "y float32 [0.0, 1.0, 2.0, 3.0]"


def test_an_input_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    _, how = held(tmp_path, counting((4,)))

    def encode(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
        listing(path, arrays, options)
        os.utime(tmp_path / "in.safetensors", ns=(0, 0))

    with pytest.raises(StoreError, match=r"in.safetensors: changed while running"):
        writer(stage(str(tmp_path / "out")), encode, **how).finish()


# --- what a killed run leaves


def test_the_next_run_removes_the_scratch_of_a_dead_one(tmp_path: Path) -> None:
    dead = tmp_path / ".out.brainsurgery-partial-999999999-1"
    dead.mkdir()
    Path(f"{dead}.scratch").touch()
    stage(str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []
