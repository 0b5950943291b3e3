"""Writing safetensors: what stock readers see, how files are laid out, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.dtypes import BY_NAME, DTYPES, Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.atomic import Staged
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.index_files import INDEX
from brainsurgery_jax.store.io import positioned
from brainsurgery_jax.store.io.arrays import numpy_dtype
from brainsurgery_jax.store.safetensors.header import encode_header
from brainsurgery_jax.store.safetensors.layout import layout_of
from brainsurgery_jax.store.safetensors.shards import plan_shards
from brainsurgery_jax.store.safetensors.source import open_safetensors
from brainsurgery_jax.store.safetensors.writer import SafetensorsWriter

F32, BF16, I8, I64 = (BY_NAME[name] for name in ("f32", "bf16", "i8", "i64"))
NUMBERS = [d for d in DTYPES if d.tag and d.numpy]


def writer(path: Path, avals: Mapping[str, Aval], **options: Any) -> SafetensorsWriter:
    how = WriteOptions(directory=not options.pop("single_file", True), metadata=options.pop("metadata", {}))
    durable = options.pop("durable", False)
    layout = layout_of(str(path), avals, how._replace(**options))
    return SafetensorsWriter(Staged(str(path), str(path)), layout, durable=durable)


def write(path: Path, arrays: Mapping[str, np.ndarray], **options: Any) -> Path:
    made = writer(path, {name: Aval(a.shape, BY_NAME[a.dtype.name]) for name, a in arrays.items()}, **options)
    for name, array in arrays.items():
        made.put(name, 0, array)
    made.finish()
    return path


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_torch_reads_every_dtype_as_it_was_put(tmp_path: Path, dtype) -> None:
    raw = np.random.default_rng(0).integers(0, 2, 6 * dtype.bits // 8, dtype=np.uint8)
    write(tmp_path / "m.safetensors", {"x": raw.view(numpy_dtype(dtype)).reshape(2, 3)})
    found = safetensors.torch.load_file(tmp_path / "m.safetensors")["x"]
    assert found.shape == (2, 3)
    assert found.view(torch.uint8).numpy().tobytes() == raw.tobytes()


def test_stock_numpy_reads_shapes_of_every_kind(tmp_path: Path) -> None:
    arrays = {"scalar": np.float32(3).reshape(()), "none": np.ones((0, 4), np.int8), "x": np.arange(6).reshape(2, 3)}
    found = safetensors.numpy.load_file(write(tmp_path / "m.safetensors", arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=4), st.lists(st.integers(0, 4), max_size=3), max_size=5))
def test_what_we_write_is_what_we_read(shapes: dict[str, list[int]]) -> None:
    arrays = {name: np.arange(np.prod(shape), dtype=np.int16).reshape(shape) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        source = open_safetensors(str(write(Path(folder, "m.safetensors"), arrays)))
        for name, array in arrays.items():
            np.testing.assert_array_equal(source.read(name), array)
        source.close()


def test_arrays_that_are_not_contiguous_are_written_by_value(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(3, 4)
    arrays = {"t": x.T, "step": x[:, ::2], "same": np.broadcast_to(x[0], (2, 4)), "back": x[::-1]}
    found = safetensors.numpy.load_file(write(tmp_path / "m.safetensors", arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_blocks_come_in_any_order_from_any_thread(tmp_path: Path) -> None:
    x = np.arange(1000, dtype=np.int32)
    made = writer(tmp_path / "m.safetensors", {"x": Aval((10, 100), BY_NAME["i32"])})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda start: made.put("x", start, x[start : start + 50]), reversed(range(0, 1000, 50))))
    made.finish()
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "m.safetensors")["x"].reshape(-1), x)


def test_every_tensor_is_aligned_and_the_data_start_at_64(tmp_path: Path) -> None:
    arrays = {"a": np.ones(3, np.int8), "b": np.ones(3, np.int64), "c": np.ones(1, np.int16), "d": np.ones(1, np.int64)}
    header = open_safetensors(str(write(tmp_path / "m.safetensors", arrays))).header
    assert list(header.tensors) == ["b", "d", "c", "a"]
    assert header.tensors["b"].offset % 64 == 0
    assert all(info.offset % (info.aval.dtype.bits // 8) == 0 for info in header.tensors.values())


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3), "b": np.ones(2)}
    first, second = write(tmp_path / "1.safetensors", arrays), write(tmp_path / "2.safetensors", arrays)
    assert first.read_bytes() == second.read_bytes()


def test_metadata_is_kept_and_the_format_added(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"x": np.ones(1)}, metadata={"who": "we", "é": "ü"})
    assert open_safetensors(str(path)).header.metadata == {"format": "pt", "who": "we", "é": "ü"}
    path = write(tmp_path / "n.safetensors", {"x": np.ones(1)}, metadata={"format": "flax"})
    assert open_safetensors(str(path)).header.metadata == {"format": "flax"}


def test_others_may_read_the_file_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    mode = write(tmp_path / "m.safetensors", {"x": np.ones(1)}).stat().st_mode
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(mode) == 0o644 & ~mask


@pytest.mark.parametrize(
    ("limit", "shards"),
    [
        (None, [["a", "b", "big", "c"]]),
        (8, [["a", "b"], ["big"], ["c"]]),
        (4, [["a"], ["b"], ["big"], ["c"]]),
        (1, [["a"], ["b"], ["big"], ["c"]]),
        (100, [["a", "b", "big", "c"]]),
    ],
)
def test_shards_are_filled_greedily_and_a_large_tensor_has_its_own(limit: int | None, shards: list[list[str]]) -> None:
    avals = {"a": Aval((4,), I8), "b": Aval((4,), I8), "big": Aval((20,), I8), "c": Aval((4,), I8)}
    assert plan_shards(avals, limit) == shards


def test_no_tensors_still_make_one_shard() -> None:
    assert plan_shards({}, 10) == [[]]


def test_a_folder_without_shard_size_holds_one_file_and_no_index(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", {"x": np.ones(2)}, single_file=False)
    assert os.listdir(folder) == ["model.safetensors"]


def test_a_sharded_folder_has_an_index_that_stock_tools_understand(tmp_path: Path) -> None:
    arrays = {"x": np.ones(4, np.float32), "y": np.ones(4, np.float32), "z": np.ones(1, np.float32)}
    folder = write(tmp_path / "out", arrays, single_file=False, shard_bytes=20, durable=True)
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert sorted(os.listdir(folder)) == [one, two, INDEX]
    text = (folder / INDEX).read_text()
    assert json.loads(text) == {"metadata": {"total_size": 36}, "weight_map": {"x": one, "y": two, "z": two}}
    assert text.startswith('{\n  "metadata": {\n    "total_size": 36\n')
    assert not text.endswith("\n")
    assert set(open_safetensors(str(folder)).header.tensors) == set(arrays)


def test_a_small_model_with_a_shard_size_is_one_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", {"x": np.ones(2)}, single_file=False, shard_bytes=1 << 30)
    assert os.listdir(folder) == ["model.safetensors"]


def test_a_layout_names_every_byte_and_creates_nothing(tmp_path: Path) -> None:
    avals = {"a": Aval((3,), I8), "b": Aval((2, 4), F32), "c": Aval((5,), BF16)}
    layout = layout_of(str(tmp_path / "out"), avals, WriteOptions(True, {"by": "us"}, shard_bytes=40))
    assert os.listdir(tmp_path) == []
    write(tmp_path / "out", {n: np.zeros(a.shape, numpy_dtype(a.dtype)) for n, a in avals.items()},
          single_file=False, shard_bytes=40, metadata={"by": "us"})  # fmt: skip
    for number, file in enumerate(layout.files):
        raw = (tmp_path / "out" / file.name).read_bytes()
        assert (len(raw), raw[: len(file.header)]) == (file.nbytes, file.header)
        found = open_safetensors(str(tmp_path / "out" / file.name)).header.tensors
        assert found == {n: info._replace(file=0) for n, info in layout.places.items() if info.file == number}
    assert layout.index_file == (tmp_path / "out" / INDEX).read_bytes()


@pytest.mark.parametrize(
    ("name", "aval", "message"),
    [
        ("z", Aval((2,), BY_NAME["c128"]), "tensor 'z': safetensors has no dtype complex128\n.*complex64"),
        ("q", Aval((3,), BY_NAME["f4_e2m1fn"]), "tensor 'q': .* does not fill whole bytes"),
        ("__metadata__", Aval((3,), F32), "reserved by the safetensors format"),
        ("\ud800", Aval((3,), F32), r"'\\ud800' is not valid Unicode"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, aval: Aval, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        writer(tmp_path / "m.safetensors", {"fine": Aval((2,), F32), name: aval})
    assert os.listdir(tmp_path) == []


def test_finish_refuses_a_tensor_with_bytes_missing(tmp_path: Path) -> None:
    made = writer(tmp_path / "m.safetensors", {"x": Aval((4,), I64)})
    made.put("x", 0, np.ones(3, np.int64))
    with pytest.raises(StoreError, match=r"tensor 'x': 24 of 32 bytes were written"):
        made.finish()


def test_abort_removes_all_that_was_written_and_may_be_repeated(tmp_path: Path) -> None:
    made = writer(tmp_path / "out", {"x": Aval((4,), I64)}, single_file=False)
    assert os.listdir(tmp_path) == ["out"]
    made.abort()
    made.abort()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("single_file", [True, False])
def test_a_staging_path_that_is_taken_is_left_alone(tmp_path: Path, single_file: bool) -> None:
    made = writer(tmp_path / "out", {"x": Aval((1,), I64)}, single_file=single_file)
    with pytest.raises(StoreError, match="could not create the partial output: File exists"):
        writer(tmp_path / "out", {"x": Aval((1,), I64)}, single_file=single_file)
    made.put("x", 0, np.ones(1, np.int64))
    made.finish()


def test_a_full_disk_shows_before_the_work_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match=r"create the partial output: No space left on device\n.*Free some space"):
        writer(tmp_path / "out", {"x": Aval((4,), I64)}, single_file=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_a_file_system_that_cannot_allocate_gets_sparse_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, "no")

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    path = write(tmp_path / "m.safetensors", {"x": np.arange(3)})
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["x"], np.arange(3))


def test_short_writes_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:5], offset))
    path = write(tmp_path / "m.safetensors", {"x": np.arange(30)})
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["x"], np.arange(30))


def declined(code: int):
    def copy(*_: int) -> int:
        raise OSError(code, os.strerror(code))

    return copy


def by_the_kernel(patch: pytest.MonkeyPatch) -> None:
    copy, calls = os.copy_file_range, []

    def counted(source: int, target: int, count: int, at: int, to: int) -> int:
        calls.append(count)
        assert len(calls) < 1000
        return copy(source, target, min(count, 1000), at, to)  # and in short steps

    patch.setattr(os, "copy_file_range", counted)


WAYS = {
    "kernel, in short steps": by_the_kernel,
    "between file systems": lambda patch: patch.setattr(os, "copy_file_range", declined(errno.EXDEV)),
    "a file system that cannot": lambda patch: patch.setattr(os, "copy_file_range", declined(errno.EOPNOTSUPP)),
    "an old kernel": lambda patch: patch.setattr(os, "copy_file_range", declined(errno.ENOSYS)),
    "arguments it does not like": lambda patch: patch.setattr(os, "copy_file_range", declined(errno.EINVAL)),
    "a kernel that copies nothing": lambda patch: patch.setattr(os, "copy_file_range", lambda *_: 0),
    "no such call": lambda patch: patch.delattr(os, "copy_file_range"),
}


@pytest.mark.parametrize("way", WAYS)
def test_runs_are_copied_byte_for_byte_however_the_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    x = np.random.default_rng(0).normal(size=5000)
    source = open_safetensors(str(write(tmp_path / "in.safetensors", {"x": x})))
    monkeypatch.setattr(positioned, "CHUNK", 4096)
    WAYS[way](monkeypatch)
    made = writer(tmp_path / "out.safetensors", {"y": Aval((50, 100), BY_NAME["f64"])})
    for start in (2500, 0):
        run = source.file_run("x", start, start + 2500)
        assert run is not None
        made.copy("y", start, run)
    made.finish()
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "out.safetensors")["y"].reshape(-1), x)
    assert source.bytes_read == 0


def test_packed_tensors_are_copied_as_bytes(tmp_path: Path) -> None:
    aval = Aval((8,), BY_NAME["f4_e2m1fn"])
    (tmp_path / "in.safetensors").write_bytes(encode_header([("q", aval)], {}) + b"abcd")
    source = open_safetensors(str(tmp_path / "in.safetensors"))
    run = source.file_run("q", 0, 8)
    assert run is not None
    made = writer(tmp_path / "out.safetensors", {"q": aval})
    made.copy("q", 0, run)
    made.finish()
    assert (tmp_path / "out.safetensors").read_bytes().endswith(b"abcd")


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_that_shrinks_under_a_copy_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    path = write(tmp_path / "in.safetensors", {"x": np.ones(1000)})
    source = open_safetensors(str(path))
    run = source.file_run("x", 0, 1000)
    assert run is not None
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range")
    os.truncate(path, 500)
    made = writer(tmp_path / "out.safetensors", {"x": Aval((1000,), BY_NAME["f64"])})
    with pytest.raises(StoreError, match=r"in.safetensors: truncated while reading"):
        made.copy("x", 0, run)


def test_hundreds_of_output_shards_take_few_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    made = writer(tmp_path / "out", {f"t{n}": Aval((1,), I8) for n in range(200)}, single_file=False, shard_bytes=1)
    for n in range(200):
        made.put(f"t{n}", 0, np.ones(1, np.int8))
    assert len(os.listdir("/dev/fd")) <= before + 64
    made.finish()
    assert len(os.listdir("/dev/fd")) == before


def test_data_of_another_dtype_are_a_fault_of_the_caller(tmp_path: Path) -> None:
    made = writer(tmp_path / "m.safetensors", {"x": Aval((4,), BF16)})
    with pytest.raises(AssertionError, match=r"'x' is bf16\[4\], the data are float32"):
        made.put("x", 0, np.ones(4, np.float32))
    made.abort()
