"""Reading what the stock library wrote: dtypes, shapes, boxes, counters, descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from brainsurgery_jax.dtypes import BY_TAG, DTYPES, Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.files import read_bytes
from brainsurgery_jax.store.safetensors.header import encode_header
from brainsurgery_jax.store.safetensors.source import open_safetensors

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
OPAQUE = [d for d in DTYPES if d.is_opaque]


def write(path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> str:
    safetensors.numpy.save_file(tensors, path, metadata=metadata or None)
    return str(path)


def random_bytes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, count, dtype=np.uint8)  # 0 and 1 are valid in every dtype


@pytest.mark.parametrize("tag", TORCH_DTYPES)
def test_every_dtype_that_torch_writes_is_read_bit_for_bit(tmp_path: Path, tag: str) -> None:
    raw = random_bytes(12 * BY_TAG[tag].bits // 8)
    tensor = torch.from_numpy(raw.copy()).view(TORCH_DTYPES[tag]).reshape(3, 4)
    safetensors.torch.save_file({"x": tensor}, tmp_path / "m.safetensors")
    source = open_safetensors(str(tmp_path / "m.safetensors"))
    assert source.header.tensors["x"].aval == Aval((3, 4), BY_TAG[tag])
    found = source.read("x")
    assert found.dtype.name == BY_TAG[tag].numpy
    assert found.tobytes() == raw.tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4)])
def test_scalars_and_empty_tensors_are_read_like_others(tmp_path: Path, shape: tuple[int, ...]) -> None:
    expected = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    source = open_safetensors(write(tmp_path / "m.safetensors", {"x": expected, "y": np.ones(3, np.int8)}))
    np.testing.assert_array_equal(source.read("x"), expected)
    np.testing.assert_array_equal(source.read_range("x", 0, expected.size), expected.reshape(-1))


def test_a_file_without_tensors_is_a_checkpoint_too(tmp_path: Path) -> None:
    source = open_safetensors(write(tmp_path / "m.safetensors", {}, origin="nowhere"))
    assert not source.header.tensors
    assert source.header.metadata == {"origin": "nowhere"}


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    table = b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(table).to_bytes(8, "little") + table + b"xy")
    assert list(open_safetensors(str(path)).header.tensors) == ["a", "b"]


def test_arrays_are_aligned_contiguous_writable_and_fresh(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"odd": np.ones(1, np.int8), "x": np.ones((40, 30), np.float32)})
    source = open_safetensors(path)
    for read in (source.read("x"), source.read("x", ((1, 9, 3), (2, 30, 1))), source.read_range("x", 7, 99)):
        assert read.ctypes.data % 64 == 0
        assert read.flags.c_contiguous
        read[...] = 0
    assert source.read("x").min() == 1


@pytest.mark.parametrize("dtype", OPAQUE)
def test_packed_dtypes_are_carried_as_bytes_but_have_no_elements(tmp_path: Path, dtype) -> None:
    path = tmp_path / "m.safetensors"
    aval = Aval((8,), dtype)
    path.write_bytes(encode_header([("q", aval)], {}) + bytes(aval.nbytes))
    source = open_safetensors(str(path))
    run = source.file_run("q", 0, 8)
    assert run is not None and run.nbytes == dtype.bits
    assert source.file_run("q", 0, 1) is None
    with pytest.raises(StoreError, match=rf"tensor 'q': the elements of dtype {dtype} cannot be read(.|\n)*copied"):
        source.read("q")


def test_a_file_run_names_the_bytes_of_its_elements(tmp_path: Path) -> None:
    data = np.arange(20, dtype=np.float32)
    source = open_safetensors(write(tmp_path / "m.safetensors", {"x": data}))
    run = source.file_run("x", 5, 9)
    assert run is not None and run.file.name == source.header.path
    assert read_bytes(run.file, run.nbytes, run.offset) == data[5:9].tobytes()


def test_only_tensor_bytes_that_were_read_are_counted(tmp_path: Path) -> None:
    source = open_safetensors(write(tmp_path / "m.safetensors", {"x": np.ones((10, 10), np.float32)}))
    assert source.bytes_read == 0
    source.read("x", ((2, 4, 1), (0, 10, 1)))
    assert source.bytes_read == 80
    source.read_range("x", 0, 1)
    source.file_run("x", 0, 100)
    assert source.bytes_read == 84


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    source = open_safetensors(write(tmp_path / "m.safetensors", {"h.0.weight": np.ones(1)}))
    with pytest.raises(StoreError, match=r"has no tensor 'h.0.wieght' \(1 tensors\). Did you mean 'h.0.weight'"):
        source.read("h.0.wieght")


def test_a_file_that_shrinks_under_a_read_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"x": np.ones(1000, np.float32)})
    source = open_safetensors(path)
    os.truncate(path, 1000)
    with pytest.raises(StoreError, match=r"tensor 'x': truncated while reading: the file ends at byte 1000"):
        source.read("x")


@pytest.mark.parametrize("change", ["append", "replace", "touch", "remove"])
def test_a_file_that_changes_during_the_run_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "m.safetensors"
    source = open_safetensors(write(path, {"x": np.ones(3)}))
    source.verify_unchanged()
    if change == "append":
        path.write_bytes(path.read_bytes() + b"!")
    elif change == "replace":
        os.replace(write(tmp_path / "n.safetensors", {"x": np.ones(3)}), path)
    elif change == "touch":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(StoreError, match=r"changed while running|could not look at the file again: No such file"):
        source.verify_unchanged()


def test_a_replaced_file_is_read_from_its_open_descriptor(tmp_path: Path) -> None:
    source = open_safetensors(write(tmp_path / "m.safetensors", {"x": np.ones(3)}))
    os.replace(write(tmp_path / "n.safetensors", {"x": np.zeros(3)}), tmp_path / "m.safetensors")
    np.testing.assert_array_equal(source.read("x"), np.ones(3))


def test_without_preadv_reads_go_through_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    source = open_safetensors(write(tmp_path / "m.safetensors", {"x": np.arange(5)}))
    np.testing.assert_array_equal(source.read("x"), np.arange(5))


def test_bfloat16_is_the_type_of_ml_dtypes(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "m.safetensors")
    assert open_safetensors(str(tmp_path / "m.safetensors")).read("x").dtype == ml_dtypes.bfloat16


def alone(program: str) -> str:
    """What a program prints in a process of its own, where nothing is imported yet."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", f"import sys; from brainsurgery_jax.store.detect import open_source; {program}"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def test_opening_a_checkpoint_imports_no_array_library(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"x": np.ones(3)})
    loaded = "[m for m in ('numpy', 'ml_dtypes', 'jax') if m in sys.modules]"
    assert alone(f"open_source({path!r}); print({loaded})") == "[]"


def test_the_first_read_finds_the_types_of_ml_dtypes_by_itself(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "m.safetensors")
    path = str(tmp_path / "m.safetensors")
    assert alone(f"print(open_source({path!r}).read('x').dtype)") == "bfloat16"
