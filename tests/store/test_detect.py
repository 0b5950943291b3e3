"""Paths: which source opens them, and what they mean as outputs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import OutputKind, open_source, output_kind, parse_size
from brainsurgery_jax.store.formats import SAFETENSORS, find_format
from brainsurgery_jax.store.sizes import show_size


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_and_a_folder_open_alike(here: Path) -> None:
    (here / "model").mkdir()
    save_file({"x": np.ones(1)}, here / "model" / "model.SAFETENSORS")
    assert list(open_source("model").header.tensors) == ["x"]
    assert list(open_source("model/model.SAFETENSORS").header.tensors) == ["x"]


def test_a_tilde_is_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    save_file({"x": np.ones(1)}, here / "m.safetensors")
    assert open_source("~/m.safetensors").header.path == str(here / "m.safetensors")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("modle.safetensors", r"does not exist. Did you mean 'model.safetensors'\?\n.*start at the current folder"),
        ("sub/modle.safetensors", r"does not exist. Did you mean 'sub/model.safetensors'\?\n.*start at the current"),
        ("none/x.safetensors", r"does not exist, nor does the folder .*none"),
        ("a.xyz", "has the suffix '.xyz', which tells no format"),
        ("a.gguf", "is a GGUF file of llama.cpp, a format that is not read"),
        ("plain", "has the suffix '', which tells no format"),
        ("model.safetensors.index.json", r"the index is not valid JSON"),
        ("pipe", "is neither a file nor a folder"),
        ("broken", "is a link to a file that is not there"),
    ],
)
def test_what_cannot_be_opened_says_why(here: Path, path: str, message: str) -> None:
    for name in ("model.safetensors", "a.gguf", "a.xyz", "plain", "model.safetensors.index.json"):
        (here / name).touch()
    (here / "sub").mkdir()
    (here / "sub" / "model.safetensors").touch()
    os.mkfifo(here / "pipe")
    (here / "broken").symlink_to("nowhere")
    with pytest.raises(StoreError, match=f"^{re.escape(path)}: {message}"):
        open_source(path)


@pytest.mark.parametrize(
    ("path", "format", "directory"),
    [
        ("out.safetensors", None, False),
        ("out.SafeTensors", "safetensors", False),
        ("out", None, True),
        ("deep/er/out", "safetensors", True),
        ("out/", None, True),
        ("llama-3.1/", None, True),
        ("llama-3.1", "safetensors", True),
        ("out.safetensors/", None, True),
        ("here.safetensors", None, True),
        ("..", None, True),
        (".hidden", None, True),
    ],
)
def test_the_suffix_decides_between_a_file_and_a_folder(
    here: Path, path: str, format: str | None, directory: bool
) -> None:
    (here / "here.safetensors").mkdir()
    assert output_kind(path, None if format is None else find_format(format)) == OutputKind(
        path, directory, SAFETENSORS, None
    )


@pytest.mark.parametrize(
    ("path", "format", "shard", "message"),
    [
        (
            "llama-3.1",
            None,
            None,
            r"ends in '.1', which tells no format.*write 'llama-3.1/' or add `format: safetensors`",
        ),
        ("x.gguf", None, None, r"ends in .gguf, which cannot be written. Write to 'x.safetensors', or to a folder"),
        ("x.onnx", "safetensors", None, "ends in .onnx, which cannot be written"),
        ("x.safetensors", "orbax", None, "ends in .safetensors, and the format is orbax. Write to the folder 'x/'"),
        ("x", "safetensor", None, "unknown format 'safetensor'. Did you mean 'safetensors'"),
        ("x", "orbax", "5GB", "orbax is not cut into shards by size. Drop `shard`"),
        ("", None, None, "the output path is empty"),
        ("x.safetensors", None, "5GB", "is one file, and a shard size needs a folder. Drop `shard`, or write to 'x/'"),
        ("x", None, "5", "expected a size such as 5GB or 500MB, or none; got '5'"),
    ],
)
def test_an_output_that_makes_no_sense_says_what_to_write(
    path: str, format: str | None, shard: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        output_kind(path, None if format is None else find_format(format), shard)


@pytest.mark.parametrize("path", ["out.npz", "out.npy", "out.pt", "out.bin"])
def test_a_folder_with_the_name_of_a_file_of_another_format_is_not_written_into_unsaid(here: Path, path: str) -> None:
    (here / path).mkdir()
    with pytest.raises(ValueError, match=f"'{path}' is a folder, and its name ends as a file of .* does") as caught:
        output_kind(path)
    (remedy,) = re.findall("say '(.*)'; for a file", str(caught.value))
    assert output_kind(remedy) == OutputKind(remedy, True, SAFETENSORS, None)


def test_no_shards_is_fine_for_a_file_and_a_size_for_a_folder(here: Path) -> None:
    assert output_kind("x.safetensors", None, "none").shard_bytes is None
    assert output_kind("x", None, "1 kb").shard_bytes == 1024


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 << 30), ("500 mb", 500 << 20), ("1b", 1), ("2KiB", 2048), ("3Tb", 3 << 40), (" None ", None)],
)
def test_sizes_are_powers_of_1024(text: str, nbytes: int | None) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "5", "GB", "1.5GB", "-1GB", "5 GB 3", "5PB", "5iB", "٣GB"])
def test_a_size_that_is_none_is_explained(text: str) -> None:
    with pytest.raises(ValueError, match=rf"expected a size such as 5GB or 500MB, or none; got '{re.escape(text)}'"):
        parse_size(text)


def test_a_size_of_zero_points_to_none() -> None:
    with pytest.raises(ValueError, match=r"must be more than zero, got '0 MB'.*write none"):
        parse_size("0 MB")


@given(st.integers(1, 1023), st.sampled_from(["B", "KB", "MB", "GB", "TB"]))
def test_a_size_shown_reads_as_the_same_size(number: int, unit: str) -> None:
    size = parse_size(f"{number}{unit}")
    assert size is not None
    assert parse_size(show_size(size).replace(".0", "")) == size


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.gguf",
            b"",
            r"is a GGUF file of llama.cpp, .*\n    Read the checkpoint that it was made from: its tens",
        ),
        ("m", b"GGUF\x03", "is a GGUF file"),
        (
            "m.onnx",
            b"",
            r"is a graph of ONNX, .*\n    Read the checkpoint that it was exported from",
        ),
        ("m.lite", b"\0\0\0\0TFL3", "is a graph of TensorFlow Lite"),
        ("m.keras", b"PK", r"is an archive of Keras, .*\n    Unpack it, and read the file of weights in it: `unzip`."),
        (
            "m.ckpt.index",
            b"",
            r"is a checkpoint of TensorFlow, .*\n    Load it with its own library, and save its",
        ),
        ("m.nemo", b"", r"is an archive of NeMo, .*\n    Unpack it, and read the weights in it: `tar -xf`."),
        ("state.pkl", b"", "is a pickle of Python, of which nothing is run"),
        ("state", b"\x80\x04\x95", "is a pickle of Python"),
        ("params.dat", b"\x80\x03}q", "is a pickle of Python"),
        ("params.pkl.gz", b"\x1f\x8b", r"is a compressed file, .*\n    Unpack it, and name what was in it."),
        ("state", b"\x1f\x8b\x08", "is a compressed file"),
        ("ckpt.tar.gz", b"\x1f\x8b", r"is an archive, .*\n    Unpack it, and name what was in it."),
        ("model.zip", b"PK", "is an archive"),
    ],
)
def test_a_format_that_is_not_read_is_called_what_it_is(here: Path, name: str, content: bytes, message: str) -> None:
    (here / name).write_bytes(content)
    with pytest.raises(StoreError, match=message):
        open_source(name)


@pytest.mark.parametrize("name", ["saved_model.pb", "model.ckpt-0.index", "m.gguf"])
def test_a_folder_of_such_a_format_is_called_so(here: Path, name: str) -> None:
    (here / "f").mkdir()
    (here / "f" / name).touch()
    with pytest.raises(StoreError, match=r"f: holds a .*a format that is not read"):
        open_source("f")


@pytest.mark.parametrize("ending", ["checkpoint_7", "params"])
def test_a_folder_with_a_file_whose_bytes_alone_tell_its_format_leads_to_it(here: Path, ending: str) -> None:
    (here / "f").mkdir()
    (here / "f" / ending).write_bytes(serialization.msgpack_serialize({"w": np.ones(3)}))
    with pytest.raises(StoreError, match=f"There are files in it that may be checkpoints. Name one: f/{ending}."):
        open_source("f")
    source = open_source(f"f/{ending}")
    assert [*source.header.tensors] == ["w"]
    source.close()
