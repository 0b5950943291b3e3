"""Files of safetensors as they are found, odd and damaged: what is read of them, and what the reference reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from tests.checkpoints import bits

DATA = bytes(range(64))


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = {"w": entry("F32", [4, 4], 0, 64)}
HALVES = {"z": entry("F32", [2], 8, 16), "a": entry("F32", [2], 0, 8)}
NAMES = ["a/b/c", "a::b", "x[0]", "with space", "ünïcode.重み", "", ".", "a..b", "tab\there", "%s{0}", "__metadata__x",
         "CON", "very." * 60 + "long"]  # fmt: skip


class Row(NamedTuple):
    """The header of a file (or its text), how many bytes follow, blanks behind the header, bytes behind the data, and a
    length that the file claims for its header. Then what is read of it: the avals, or an error."""

    header: Mapping[str, Any] | bytes
    nbytes: int
    reads: list[str] | str
    pad: int = 0
    tail: bytes = b""
    length: int | None = None


ROWS = {
    "metadata empty": Row({"__metadata__": {}, **ONE}, 64, ["w f32[4,4]"]),
    "metadata null": Row({"__metadata__": None, **ONE}, 64, ["w f32[4,4]"]),
    "metadata with a number": Row({"__metadata__": {"step": 5}, **ONE}, 64, "__metadata__ must map names to text"),
    "metadata a list": Row({"__metadata__": [], **ONE}, 64, "__metadata__ must map names to text"),
    "padded": Row(ONE, 64, ["w f32[4,4]"], pad=500),
    "bytes behind": Row(ONE, 64, "has 40 bytes behind its last tensor", tail=b"x" * 40),
    "cut": Row(ONE, 40, "tensor 'w': is cut off: the header promises"),
    "cut in the header": Row(json.dumps(ONE).encode()[:20], 0, "claims a header of 5000 bytes", length=5000),
    "hole": Row({"w": entry("F32", [2], 0, 8), "v": entry("F32", [2], 16, 24)}, 24, "tensor 'v': leaves a gap"),
    "overlap": Row({"w": entry("F32", [4], 0, 16), "v": entry("F32", [4], 0, 16)}, 16, "tensor 'v': overlaps"),
    "unaligned": Row({"a": entry("U8", [3], 0, 3), "w": entry("F32", [2], 3, 11)}, 11, ["a u8[3]", "w f32[2]"]),
    "out of order": Row(HALVES, 16, ["a f32[2]", "z f32[2]"]),
    "one name twice": Row(
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        16, "the key 'w' appears twice",
    ),
    "four bits": Row(
        {"w": entry("F4", [4, 8], 0, 16), "s": entry("F8_E8M0", [4], 16, 20), "n": entry("F32", [], 20, 24)}, 24,
        ["w f4_e2m1fn[4,8]", "s f8_e8m0fnu[4]", "n f32[]"],
    ),
    "six bits": Row(
        {"w": entry("F6_E2M3", [4], 0, 3), "n": entry("F32", [1], 3, 7)}, 7, ["w f6_e2m3fn[4]", "n f32[1]"]
    ),
    "complex": Row({"w": entry("C64", [2], 0, 16)}, 16, ["w c64[2]"]),
    "unknown dtype": Row({"w": entry("I4", [4], 0, 2)}, 2, "tensor 'w': unknown dtype 'I4'"),
    "empty tensors": Row(
        {"a": entry("F32", [0, 7], 0, 0), "b": entry("I64", [], 0, 8), "c": entry("BOOL", [3, 0], 8, 8)}, 8,
        ["a f32[0,7]", "b i64[]", "c bool[3,0]"],
    ),
    "no tensors": Row({}, 0, []),
    "odd names": Row(
        {name: entry("U8", [1], at, at + 1) for at, name in enumerate(NAMES)}, 13, [f"{name} u8[1]" for name in NAMES]
    ),
}  # fmt: skip


def written(path: Path, row: Row) -> Path:
    text = row.header if isinstance(row.header, bytes) else json.dumps(row.header).encode()
    text += b" " * row.pad
    length = len(text) if row.length is None else row.length
    path.write_bytes(length.to_bytes(8, "little") + text + DATA[: row.nbytes] + row.tail)
    return path


@pytest.mark.parametrize("name", ROWS)
def test_an_odd_file_is_read_right_or_refused(tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    path = written(tmp_path / "m.safetensors", row)
    if isinstance(row.reads, str):
        with pytest.raises(StoreError, match=row.reads):
            bs.open(str(path))
        return
    checkpoint = bs.open(str(path))
    assert [f"{name} {aval}" for name, aval in checkpoint.avals.items()] == row.reads
    assert checkpoint.metadata == {}
    start = path.stat().st_size - row.nbytes
    for name, info in checkpoint.source.header.tensors.items():
        if info.aval.dtype.numpy is not None:
            assert bits(checkpoint[name]) == DATA[info.offset - start :][: info.aval.nbytes]


@pytest.mark.parametrize("name", ROWS)
def test_the_reference_reads_the_same_files(tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    path = written(tmp_path / "m.safetensors", row)
    if isinstance(row.reads, str):
        with pytest.raises(SafetensorError), safe_open(path, "numpy") as file:
            file.keys()
    else:
        with safe_open(path, "numpy") as file:
            assert len(file.keys()) == len(row.reads)


def test_quantized_weights_beside_an_empty_marker_are_read_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.randn(8, 16).to(torch.float8_e4m3fn)
    tensors = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn), "w": weight, "w_scale": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"config": json.dumps({"a": [1, 2]})})
    checkpoint = bs.open(str(tmp_path / "m.safetensors"))
    assert str(checkpoint.avals["scaled_fp8"]) == "f8_e4m3fn[0]"
    assert bits(checkpoint["w"]) == weight.view(torch.uint8).numpy().tobytes()
    assert np.array_equal(checkpoint["w"].astype(np.float32), weight.float().numpy())
    assert checkpoint.metadata == {"config": '{"a": [1, 2]}'}


def test_a_file_whose_metadata_are_null_goes_through_a_plan(tmp_path: Path) -> None:
    source = written(tmp_path / "in.safetensors", ROWS["metadata null"])
    bs.load({"inputs": [str(source)], "output": str(tmp_path / "out.safetensors")}).run(durable=False)
    with safe_open(tmp_path / "out.safetensors", "numpy") as file:
        assert (file.metadata(), file.get_tensor("w").tobytes()) == ({"format": "pt"}, DATA)
