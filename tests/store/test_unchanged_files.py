"""An output file that is an input file as it stands: when it is one, and how it gets its bytes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import brainsurgery_jax as bs
from brainsurgery_jax.api import run
from brainsurgery_jax.dtypes import BY_NAME, Aval
from brainsurgery_jax.engine.events import Event, Started, Wrote
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.base import Held, WriteOptions
from brainsurgery_jax.store.io import local, positioned
from brainsurgery_jax.store.safetensors.layout import layout_of
from brainsurgery_jax.store.safetensors.source import SafetensorsSource, open_safetensors
from brainsurgery_jax.store.safetensors.writer import SafetensorsWriter
from tests.checkpoints import counting, normal, read, write, write_raw

PT = {"format": "pt"}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ODD = b" \n\t "  # blanks that no writer of ours puts behind a header


def padded(path: Path) -> Path:
    """The same checkpoint file with a header that ends oddly, to tell a copy of it from one that was written anew."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    path.write_bytes((end - 8 + len(ODD)).to_bytes(8, "little") + raw[8:end] + ODD + raw[end:])
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two files of 80 bytes each, narrow tensors first, as we never write them."""
    folder = tmp_path / "model"
    folder.mkdir()
    padded(write(folder / ONE, {"b": counting((40,), np.int8), "w": normal((5, 2))}, PT))
    padded(write(folder / TWO, {"c": counting((8,), np.int8), "v": normal((9, 2))}, PT))
    return folder


def surgery(model: Path, *steps: Any, **output: Any) -> Path:
    """The folder that a plan with these steps makes of the model, in files of 80 bytes."""
    path = model.parent / "out"
    plan = {
        "inputs": [f"m::{model}"],
        "transforms": list(steps),
        "output": {"path": f"{path}/", "shard": "80B"} | output,
    }
    bs.load(plan).run(durable=False)
    return path


def by_copying(source: int, target: int) -> bool:
    """Stands for a file system that can clone."""
    os.pwrite(target, os.pread(source, 1 << 20, 0), 0)
    return True


def clones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(local, "clone", by_copying)


def copies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(local, "clone", lambda source, target: False)


each_way = pytest.mark.parametrize("way", [clones, copies])


@each_way
def test_a_file_of_which_every_tensor_stays_is_passed_on_byte_for_byte(
    model: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None]
) -> None:
    way(monkeypatch)
    out = surgery(model, {"scale_": {"target": "v", "by": 2}})
    assert (out / ONE).read_bytes() == (model / ONE).read_bytes()
    assert (out / TWO).read_bytes()[:200] != (model / TWO).read_bytes()[:200]
    found = safetensors.numpy.load_file(out / ONE) | safetensors.numpy.load_file(out / TWO)
    np.testing.assert_array_equal(found["w"], read(model / ONE)["w"])
    np.testing.assert_array_equal(found["v"], 2 * read(model / TWO)["v"])


CHANGES: Mapping[str, Any] = {
    "a value": {"scale_": {"target": "v", "by": 2}},
    "a dtype": {"cast_": {"target": "v", "to": "float16"}},
    "a name": {"move": {"from": "v", "to": "x"}},
    "a swap": [
        {"move": {"from": "v", "to": "t"}},
        {"move": {"from": "c", "to": "v"}},
        {"move": {"from": "t", "to": "c"}},
    ],
    "a tensor less": {"delete": {"target": "v"}},
    "a tensor under a second name": [{"delete": {"target": "c"}}, {"copy": {"from": "v::[:1, :]", "to": "x"}}],
    "a slice written over": {"assign": {"from": "w::[:1]", "to": "v::[:1]"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_with_any_change_is_written_anew_and_its_neighbour_passed_on(model: Path, change: str) -> None:
    steps = CHANGES[change]
    out = surgery(model, *(steps if isinstance(steps, list) else [steps]))
    assert (out / ONE).read_bytes() == (model / ONE).read_bytes()
    assert ODD not in (out / TWO).read_bytes()


def test_a_tensor_written_twice_makes_it_another_file(tmp_path: Path) -> None:
    source = padded(write(tmp_path / "m.safetensors", {"w": normal((5, 2))}, PT))
    out = tmp_path / "out.safetensors"
    copy = {"copy": {"from": "w", "to": "tied"}}
    bs.load({"inputs": [str(source)], "transforms": [copy], "output": str(out)}).run(durable=False)
    assert ODD not in out.read_bytes()
    np.testing.assert_array_equal(read(out)["tied"], read(source)["w"])


def test_other_metadata_make_it_another_file(model: Path) -> None:
    out = surgery(model, metadata={"note": "ours"})
    for name in (ONE, TWO):
        assert ODD not in (out / name).read_bytes()
        with safetensors.safe_open(out / name, "numpy") as file:
            assert file.metadata() == {"format": "pt", "note": "ours"}


def test_metadata_that_only_one_file_has_make_that_file_alone_the_same(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    a = padded(write(tmp_path / "model" / ONE, {"w": normal((10, 2))}, PT | {"who": "we"}))
    padded(write(tmp_path / "model" / TWO, {"v": normal((10, 2))}, PT))
    out = surgery(tmp_path / "model")
    assert (out / ONE).read_bytes() == a.read_bytes()
    assert ODD not in (out / TWO).read_bytes()


def test_a_file_without_the_format_that_we_write_is_another_file(tmp_path: Path) -> None:
    source = padded(write(tmp_path / "m.safetensors", {"w": normal((5, 2))}))
    out = tmp_path / "out.safetensors"
    bs.load({"inputs": [str(source)], "output": str(out)}).run(durable=False)
    assert ODD not in out.read_bytes()


@pytest.mark.parametrize("more", [{"note": 1}, {"strides": [1]}])
def test_what_else_a_header_says_of_a_tensor_is_not_passed_on(tmp_path: Path, more: Mapping[str, Any]) -> None:
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **more}
    source = write_raw(tmp_path / "m.safetensors", {"__metadata__": PT, "w": entry}, b"abcd")
    out = tmp_path / "out.safetensors"
    bs.load({"inputs": [str(source)], "output": str(out)}).run(durable=False)
    assert next(iter(more)).encode() not in out.read_bytes()
    assert safetensors.numpy.load_file(out)["w"].tobytes() == b"abcd"


def test_a_header_that_does_not_begin_with_the_brace_of_the_format_is_not_passed_on(tmp_path: Path) -> None:
    text = b' {"__metadata__":{"format":"pt"},"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"ab")
    out = tmp_path / "out.safetensors"
    bs.load({"inputs": [str(tmp_path / "m.safetensors")], "output": str(out)}).run(durable=False)
    assert out.read_bytes()[8:9] == b"{"
    assert safetensors.numpy.load_file(out)["w"].tobytes() == b"ab"


def test_halves_of_two_files_do_not_make_one_file(model: Path) -> None:
    out = surgery(model, {"delete": {"target": "b"}}, {"delete": {"target": "c"}}, shard="none")
    assert sorted(read(out / "model.safetensors")) == ["v", "w"]
    assert ODD not in (out / "model.safetensors").read_bytes()


def test_tensors_of_two_checkpoints_do_not_make_one_file(tmp_path: Path) -> None:
    for name in "ab":
        padded(write(tmp_path / f"{name}.safetensors", {"x": normal((4,)), name: normal((4,))}, PT))
    out = tmp_path / "out.safetensors"
    plan = {
        "inputs": [f"a::{tmp_path}/a.safetensors", f"b::{tmp_path}/b.safetensors"],
        "transforms": [{"delete": {"target": "a::x"}}, {"copy": {"from": "b::x", "to": "a::x"}}],
        "output": {"path": str(out), "alias": "a"},
    }
    bs.load(plan).run(durable=False)
    assert sorted(read(out)) == ["a", "x"]
    assert ODD not in out.read_bytes()


@each_way
@pytest.mark.parametrize("durable", [True, False])
def test_an_output_onto_its_own_input_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None], durable: bool
) -> None:
    way(monkeypatch)
    source = padded(write(tmp_path / "m.safetensors", {"b": counting((3,), np.int8), "w": normal((5, 2))}, PT))
    before = source.read_bytes()
    bs.load({"inputs": [str(source)], "output": {"path": str(source), "overwrite": True}}).run(durable=durable)
    assert source.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


@each_way
def test_an_original_that_changes_during_the_run_is_noticed_and_nothing_left(
    model: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None]
) -> None:
    way(monkeypatch)

    def meddle(told: Event) -> None:
        if isinstance(told, Started):
            (model / ONE).write_bytes(b"x" * (model / ONE).stat().st_size)

    plan = {"inputs": [str(model)], "output": {"path": f"{model.parent}/out/", "shard": "80B"}}
    with pytest.raises(StoreError, match=rf"{ONE}: changed while running"):
        run(bs.load(plan), listen=meddle, durable=False)
    assert os.listdir(model.parent) == ["model"]


@each_way
def test_every_byte_of_a_tensor_is_told_of_once(
    model: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None]
) -> None:
    way(monkeypatch)
    told: list[Event] = []
    plan = {"inputs": [str(model)], "output": {"path": f"{model.parent}/out/", "shard": "80B"}}
    run(bs.load(plan), listen=told.append, durable=False)
    assert [e.nbytes for e in told if isinstance(e, Started)] == [160]
    assert {e.name: e.nbytes for e in told if isinstance(e, Wrote)} == {"b": 40, "w": 40, "c": 8, "v": 72}


def test_of_a_clone_no_byte_is_copied(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a byte was copied")

    clones(monkeypatch)
    monkeypatch.setattr(local, "copy_range", refuse)
    out = surgery(model)
    assert (out / TWO).read_bytes() == (model / TWO).read_bytes()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM])
def test_a_file_system_that_cannot_clone_copies(model: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    out = surgery(model)
    assert (out / ONE).read_bytes() == (model / ONE).read_bytes()


def test_cloning_asks_linux_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda target, request, source: asked.append((target, request, source)))
    monkeypatch.setattr(positioned.sys, "platform", "linux")
    assert positioned.clone(3, 4)
    assert asked == [(4, 0x40049409, 3)]
    monkeypatch.setattr(positioned.sys, "platform", "darwin")
    assert not positioned.clone(3, 4)
    assert len(asked) == 1


def taking_over(path: Path, avals: Mapping[str, Aval], source: SafetensorsSource) -> SafetensorsWriter:
    staged = Staged(str(path), str(path))
    options = WriteOptions(False, {}, unchanged={name: Held(source, name) for name in avals})
    return SafetensorsWriter(staged, layout_of(str(path), avals, options), durable=False)


def hand_over(writer: SafetensorsWriter, source: SafetensorsSource, name: str) -> None:
    run = source.file_run(name, 0, source.header.tensors[name].aval.size)
    assert run is not None
    writer.copy(name, 0, run)


@each_way
def test_packed_and_empty_tensors_are_passed_on_with_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None]
) -> None:
    way(monkeypatch)
    header = {
        "__metadata__": PT,
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]},
        "q": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]},
        "s": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [3, 6]},
    }
    path = write_raw(tmp_path / "m.safetensors", header, b"abcdef")
    source = open_safetensors(str(path))
    writer = taking_over(tmp_path / "out", {name: info.aval for name, info in source.header.tensors.items()}, source)
    for name in source.header.tensors:
        hand_over(writer, source, name)
    writer.finish()
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


@each_way
def test_a_tensor_that_was_not_handed_over_is_missing_even_of_a_clone(
    model: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None]
) -> None:
    way(monkeypatch)
    source = open_safetensors(str(model / ONE))
    out = model.parent / "out"
    writer = taking_over(out, {name: info.aval for name, info in source.header.tensors.items()}, source)
    hand_over(writer, source, "b")
    with pytest.raises(StoreError, match="tensor 'w': 0 of 40 bytes were written"):
        writer.finish()
    assert out.exists()
    writer.abort()
    assert not out.exists()


def test_an_original_cut_short_before_its_header_is_copied_is_an_error_and_nothing_left(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies(monkeypatch)
    source = open_safetensors(str(model / ONE))
    os.truncate(model / ONE, 20)
    avals = {name: info.aval for name, info in source.header.tensors.items()}
    with pytest.raises(StoreError, match=rf"{ONE}: truncated while reading"):
        taking_over(model.parent / "out", avals, source)
    assert os.listdir(model.parent) == ["model"]


def test_a_full_disk_shows_before_a_file_is_copied_and_leaves_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    copies(monkeypatch)
    monkeypatch.setattr(os, "posix_fallocate", full)
    source = open_safetensors(str(model / ONE))
    with pytest.raises(StoreError, match="create the partial output: No space left on device"):
        taking_over(model.parent / "out", {name: info.aval for name, info in source.header.tensors.items()}, source)
    assert os.listdir(model.parent) == ["model"]


def test_each_output_file_is_a_lane_of_its_own(tmp_path: Path) -> None:
    avals = {name: Aval((20,), BY_NAME["f32"]) for name in "abc"}
    out = str(tmp_path / "out")
    layout = layout_of(out, avals, WriteOptions(True, {}, shard_bytes=160))
    writer = SafetensorsWriter(Staged(out, out), layout, durable=False)
    assert [writer.lane(name) for name in "abc"] == [0, 0, 1]
    writer.abort()
