"""Faults that were found by trying to break the command, and similar ones. Each is an error with a remedy, or none."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.cli import app
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store import completeness
from brainsurgery_jax.store.detect import open_source
from tests.checkpoints import read, write
from tests.cli.conftest import environment

ONES = {"w": np.ones((2, 2), np.float32)}


def call(words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code of a command in this process, and what it says on stderr."""
    monkeypatch.setattr(sys, "argv", ["brainsurgery-jax", *words])
    with pytest.raises(SystemExit) as stop:
        app.main()
    return int(stop.value.code or 0), capfd.readouterr().err


# --- What is no file --------------------------------------------------------------------------------------------------

INPUTS = ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "model.safetensors.index.json",
          "adapter_config.json"]  # fmt: skip


@pytest.mark.parametrize("kind", ["FIFO", "device"])
@pytest.mark.parametrize("name", INPUTS)
def test_an_input_that_is_no_file_is_refused_and_not_waited_for(here: Path, name: str, kind: str) -> None:
    folder = here / "model"
    folder.mkdir()
    if name.endswith(".json"):
        write(folder / ("adapter_model.safetensors" if "adapter" in name else "model.safetensors"), ONES)
    os.mkfifo(folder / name) if kind == "FIFO" else os.symlink("/dev/zero", folder / name)
    with pytest.raises(StoreError, match=f"it is a {kind}, not a file"):
        open_source(str(folder))


@pytest.mark.parametrize("kind", ["FIFO", "device"])
@pytest.mark.parametrize("words", [["strange.yaml"], ["check", "strange.yaml"], ["plan.yaml", "--ops", "strange.py"],
                                   ["outer.yaml"], ["import-mergekit", "strange.yaml"]], ids=" ".join)  # fmt: skip
def test_a_plan_or_ops_that_are_no_file_are_refused(
    here: Path, words: list[str], kind: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("m.safetensors", ONES)
    (here / "plan.yaml").write_text("inputs: [m.safetensors]\noutput: out\n")
    (here / "outer.yaml").write_text(
        "inputs: [m.safetensors]\ntransforms: [{execute: {path: strange.yaml}}]\noutput: out\n"
    )
    for name in ("strange.yaml", "strange.py"):
        os.mkfifo(name) if kind == "FIFO" else os.symlink("/dev/zero", name)
    code, err = call(words, capfd, monkeypatch)
    assert code in (1, 2, 3)
    assert f"it is a {kind}, not a file" in err
    assert not os.path.exists("out")


def test_a_file_that_is_read_whole_has_a_limit(here: Path) -> None:
    (here / "config.json").write_bytes(bytes(11))
    assert read_regular("config.json", 11) == bytes(11)
    with pytest.raises(OSError, match="it has more than 10 bytes"):
        read_regular("config.json", 10)


# --- Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">&-", 0, "wrote out"),
        ("2>&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        (">/dev/full", 3, "standard output: could not write all results: No space left on device"),
        ("2>/dev/full", 0, ""),
        (">/dev/full 2>/dev/full", 3, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_stops_no_run_and_gets_into_no_output(
    here: Path, streams: str, code: int, said: str
) -> None:
    write("m.safetensors", ONES)
    (here / "plan.yaml").write_text("inputs: [m.safetensors]\ntransforms: [dump]\noutput: out.safetensors\n")
    line = f'"{sys.executable}" -m brainsurgery_jax plan.yaml {streams}'
    done = subprocess.run(line, shell=True, env=environment(), capture_output=True, text=True)
    assert (done.returncode, said in done.stderr) == (code, True)
    assert "defect" not in done.stderr
    assert np.array_equal(read("out.safetensors")["w"], ONES["w"])


def test_a_failure_keeps_its_exit_code_where_its_words_are_lost(here: Path) -> None:
    line = f'"{sys.executable}" -m brainsurgery_jax inspect none >/dev/full 2>&-'
    assert subprocess.run(line, shell=True, env=environment()).returncode == 3


# --- Names ------------------------------------------------------------------------------------------------------------


def test_marks_of_direction_and_separators_of_lines_do_not_reach_the_terminal(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
    write("m.safetensors", {f"a{marks}b": np.ones(3, np.float32)})
    monkeypatch.setattr(sys, "argv", ["brainsurgery-jax", "inspect", "m.safetensors"])
    with pytest.raises(SystemExit):
        app.main()
    out = capfd.readouterr().out
    assert not set(marks) & set(out)
    assert "a" + "".join(f"\\u{ord(mark):04x}" for mark in marks) + "b" in out


# --- Sources that change ----------------------------------------------------------------------------------------------


def test_an_edit_in_place_is_noticed_though_its_time_is_set_back(here: Path) -> None:
    write("m.safetensors", ONES)
    source = open_source("m.safetensors")
    source.read("w")
    before = os.stat("m.safetensors")
    with open("m.safetensors", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"abcd")
    os.utime("m.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat("m.safetensors").st_mtime_ns == before.st_mtime_ns
    with pytest.raises(StoreError, match="changed while running"):
        source.verify_unchanged()
    source.close()


# --- Damage -----------------------------------------------------------------------------------------------------------


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f4', 'shape': (\n", b"\xff\xfe{'descr'", b"(" * 9000, b"-" * 9000 + b"1"]
)
def test_a_damaged_npy_header_is_an_error(here: Path, header: bytes) -> None:
    (here / "x.npy").write_bytes(npy(header))
    with pytest.raises(StoreError, match="npy header is damaged"):
        open_source("x.npy")


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_may_take_any_memory_is_never_decoded(here: Path, kind: int) -> None:
    """bzip2 and LZMA decode a few bytes to gigabytes at once."""
    with zipfile.ZipFile("x.npz", "w", kind) as archive:
        archive.writestr("w.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n") + bytes(50 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="numpy never does"):
            open_source("x.npz")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["../w.npy", "/w.npy", "a/../../w.npy", "..\\w.npy"])
def test_a_member_that_would_lie_outside_is_neither_read_nor_written(here: Path, name: str) -> None:
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr(name, npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n") + bytes(4))
    with pytest.raises(StoreError, match="its name leads out of the archive"):
        open_source("x.npz")
    with pytest.raises(PlanError, match="would be unpacked outside of its folder"):
        bs.save("y.npz", {name.removesuffix(".npy"): ONES["w"]})


def test_a_name_of_a_member_that_is_no_text_is_an_error(here: Path) -> None:
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("é.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n") + bytes(4))
    raw = (here / "x.npz").read_bytes()
    (here / "x.npz").write_bytes(raw.replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(StoreError, match="the name of a member is no text"):
        open_source("x.npz")


@pytest.mark.parametrize(("text", "why"), [('{"a":' * 100_000, "nested too deeply"), ("[]", "holds a list")])
def test_a_config_that_is_no_mapping_is_an_error(
    here: Path, text: str, why: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "m").mkdir()
    write("m/model.safetensors", ONES)
    (here / "m/config.json").write_text(text)
    (here / "plan.yaml").write_text("inputs: [m]\noutput: {path: out, config: {a: 1}}\n")
    code, err = call(["plan.yaml"], capfd, monkeypatch)
    assert code == 1
    assert why in err


@pytest.mark.parametrize("json", [False, True])
def test_a_system_error_that_nobody_expected_is_no_defect(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, json: bool
) -> None:
    (here / "m").mkdir()
    write("m/model.safetensors", ONES)

    def fail(path: str) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(completeness.os, "listdir", fail)
    monkeypatch.setattr(sys, "argv", ["brainsurgery-jax", "inspect", "m", *(["--json"] if json else [])])
    with pytest.raises(SystemExit) as stop:
        app.main()
    said = capfd.readouterr()
    assert stop.value.code == 3
    assert "Input/output error" in (said.out if json else said.err)
    assert "defect" not in said.err


@pytest.mark.parametrize("output", ["out.pt", "{path: out, format: orbax}"])
def test_more_shards_than_the_soft_limit_of_descriptors_are_read_and_mapped(here: Path, output: str) -> None:
    (here / "m").mkdir()
    for i in range(80):
        write(f"m/model-{i + 1:05d}-of-00080.safetensors", {f"w{i}": np.full(16, i, np.float32)})
    (here / "plan.yaml").write_text(f"inputs: [m]\noutput: {output}\n")
    line = f'ulimit -Sn 64; exec "{sys.executable}" -m brainsurgery_jax plan.yaml'
    done = subprocess.run(line, shell=True, env=environment(), capture_output=True, text=True)
    assert (done.returncode, "80 tensors" in done.stderr) == (0, True), done.stderr
