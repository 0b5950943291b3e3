"""Files that lie: each planted fault has its own message, and nothing but a StoreError ever comes out."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainsurgery_jax.dtypes import BY_NAME, BY_TAG, Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.safetensors.header import encode_header, parse_header
from brainsurgery_jax.store.safetensors.source import SafetensorsSource, open_safetensors


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


TWICE = b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
INNER_TWICE = b'{"a":{"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
BYTE = entry("U8", [1], [0, 1])
GOOD = file_of({"a": entry()})

FAULTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is 0 bytes long, too short"),
    "length only in part": (b"\x01\x00", "is 2 bytes long, too short"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs .*\n.*git lfs pull"),
    "html page": (b"<!DOCTYPE html><html>not found</html>", "claims a header of [0-9]+ bytes .at most 100000000"),
    "absurd length": (file_of({"a": entry()}, length=1 << 63), "claims a header of 9223372036854775808 bytes"),
    "length past the end": (file_of({"a": entry()}, length=1000), "claims a header of 1000 bytes, but only"),
    "not JSON": (file_of(b"{'a': 1}"), "header is not valid JSON"),
    "half a JSON": (file_of(b'{"a": {'), "header is not valid JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "header is not valid UTF-8"),
    "half a surrogate pair": (file_of({"\ud800": entry()}), "header is not valid UTF-8"),
    "nested for ever": (file_of(b"[" * 200_000), "nested too deeply"),
    "endless digits": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "header is not valid JSON"),
    "a list": (file_of([1, 2]), "header is a JSON list, expected an object"),
    "tensor twice": (file_of(TWICE), "the key 'a' appears twice"),
    "key of an entry twice": (file_of(INNER_TWICE), "the key 'dtype' appears twice"),
    "tensor twice, once a number": (file_of(b'{"a":1,' + TWICE[1:]), "the key 'a' appears twice"),
    "key of the metadata twice": (file_of(b'{"__metadata__":{"x":"1","x":"1"}}'), "the key 'x' appears twice"),
    "entry is text": (file_of({"a": "F32"}), "tensor 'a': its header entry needs dtype.*found 'F32'"),
    "entry is null": (file_of({"a": None}), "tensor 'a': its header entry needs"),
    "no dtype": (file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}), "tensor 'a': its header entry needs"),
    "no shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "tensor 'a': its header entry needs"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}), "tensor 'a': its header entry needs"),
    "dtype is a number": (file_of({"a": entry(dtype=32)}), "tensor 'a': its header entry needs"),
    "unknown dtype": (file_of({"a": entry(dtype="F33")}), "tensor 'a': unknown dtype 'F33'\n.*Did you mean 'F32'"),
    "shape is text": (file_of({"a": entry(shape="2")}), "tensor 'a': its header entry needs"),
    "dimension is a float": (file_of({"a": entry(shape=[2.0])}), "tensor 'a': its header entry needs"),
    "dimension is true": (file_of({"z": BYTE, "a": entry("U8", [True], [1, 2])}, b"xy"), "'a': its header entry needs"),
    "negative dimension": (file_of({"a": entry(shape=[-2])}), r"tensor 'a': has a negative dimension: \[-2\]"),
    "absurd dimension": (file_of({"a": entry(shape=[0, 1 << 70])}), "tensor 'a': has an absurd shape"),
    "absurd product": (file_of({"a": entry(shape=[1 << 40] * 4)}), "tensor 'a': has an absurd shape"),
    "65 dimensions": (file_of({"a": entry(shape=[1] * 65)}), "tensor 'a': has 65 dimensions, at most 64"),
    "three offsets": (file_of({"a": entry(offsets=[0, 4, 8])}), "tensor 'a': its header entry needs"),
    "offset is a float": (file_of({"a": entry(offsets=[0, 8.0])}), "tensor 'a': its header entry needs"),
    "offset below zero": (file_of({"a": entry(offsets=[-8, 0])}), "tensor 'a': its header entry needs"),
    "offsets reversed": (file_of({"a": entry(offsets=[8, 0])}), "tensor 'a': its header entry needs"),
    "size and shape disagree": (file_of({"a": entry(shape=[3])}), r"'a': f32\[3\] takes 12 bytes.*\[0, 8\] span 8"),
    "nibbles left over": (file_of({"a": entry("F4", [3], [0, 2])}, b"xy"), "tensor 'a': .* does not fill whole bytes"),
    "overlap": (file_of({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "'b': overlaps.*at 4, expected 8"),
    "the same bytes twice": (file_of({"a": entry(), "b": entry()}), "tensor 'b': overlaps the tensor before it"),
    "gap": (file_of({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17)), "'b': leaves a gap.*at 9, expected 8"),
    "gap at the start": (file_of({"a": entry(offsets=[4, 12])}, bytes(12)), "tensor 'a': leaves a gap"),
    "file too short": (GOOD[:-1], "tensor 'a': is cut off: the header promises [0-9]+ bytes, the file has"),
    "file too long": (GOOD + b"?", "has 1 bytes behind its last tensor"),
    "metadata is a list": (file_of({"__metadata__": ["pt"], "a": entry()}), "__metadata__ must map names to text"),
    "metadata holds a number": (file_of({"__metadata__": {"n": 1}, "a": entry()}), "__metadata__ must map"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_with_file_and_remedy(tmp_path: Path, fault: str) -> None:
    raw, message = FAULTS[fault]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=rf"{re.escape(str(path))}: .*{message}") as caught:
        open_safetensors(str(path))
    assert caught.value.remedy


def test_the_file_that_the_faults_are_planted_in_is_good(tmp_path: Path) -> None:
    (tmp_path / "good.safetensors").write_bytes(GOOD)
    assert list(open_safetensors(str(tmp_path / "good.safetensors")).header.tensors) == ["a"]


def opened(raw: bytes) -> SafetensorsSource | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(raw)
        try:
            source = open_safetensors(str(path))
        except StoreError:
            return None
        source.close()
        return source


@given(st.binary(max_size=200))
def test_random_bytes_give_nothing_but_a_store_error(raw: bytes) -> None:
    opened(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(BY_TAG)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
ENTRY = st.fixed_dictionaries({}, optional={"dtype": JSON, "shape": JSON, "data_offsets": JSON})


@given(st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), ENTRY | JSON, max_size=4), st.binary(max_size=16))
def test_any_json_in_the_header_gives_nothing_but_a_store_error(header: dict[str, Any], data: bytes) -> None:
    opened(file_of(header, data))


VALID = encode_header([("w", Aval((2, 3), BY_NAME["f32"])), ("b", Aval((3,), BY_NAME["bf16"]))], {"k": "v"}) + bytes(30)


@given(st.integers(0, len(VALID) - 1))
def test_every_truncation_is_noticed(length: int) -> None:
    assert opened(VALID[:length]) is None


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_file_is_refused_or_tells_a_consistent_header(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(VALID)
    for position, value in changes:
        raw[position] = value
    if (source := opened(bytes(raw))) is not None:
        assert all(info.offset + info.aval.nbytes <= len(VALID) for info in source.header.tensors.values())


DTYPE = st.sampled_from([d for d in BY_TAG.values() if d.bits >= 8])
AVAL = st.builds(Aval, st.lists(st.integers(0, 5), max_size=3).map(tuple), DTYPE)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(UNICODE, AVAL, max_size=6), st.dictionaries(UNICODE, UNICODE, max_size=3))
def test_a_header_that_we_write_is_the_header_that_we_read(avals: dict[str, Aval], metadata: dict[str, str]) -> None:
    raw = encode_header(list(avals.items()), metadata)
    assert len(raw) % 64 == 0
    header = parse_header(raw[8:], "x", len(raw) + sum(aval.nbytes for aval in avals.values()))
    assert {name: info.aval for name, info in header.tensors.items()} == avals
    assert header.metadata == metadata
