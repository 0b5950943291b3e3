"""Hints about checkpoints that cannot be read, done as they say: all is read as it was."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.store.io import arrays as store_arrays
from brainsurgery_jax.store.torch import pickle_opcodes
from tests import checkpoints
from tests.hints.calls import DOUBLE, W, hint_of, run
from tests.hints.cases import quoted

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.filterwarnings("ignore")]

STATE = {"w": torch.arange(4, dtype=torch.float32)}


def orbax(folder: str, tree: Any) -> Path:
    """What orbax itself saves."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).absolute(), tree)
    return Path(folder)


def test_a_folder_of_a_trainer_is_named_by_a_file_of_it() -> None:
    os.mkdir("run")
    shutil.copy("m.safetensors", "run/optimizer.safetensors")
    hint_of(lambda: bs.open("run"), "Name a file of it")
    assert bs.open("run/optimizer.safetensors")["w"].tolist() == W.tolist()


def test_one_of_several_steps_is_named() -> None:
    os.mkdir("steps")
    for step in (1, 2):
        orbax(f"steps/{step}/default", {"w": jnp.asarray(W + step)})
    hint = hint_of(lambda: bs.open("steps"), "Name one, for example ")
    assert bs.open(hint.rpartition("example ")[2].removesuffix("."))["w"].tolist() == (W + 2).tolist()


@pytest.mark.parametrize("way", ["again", "earlier"])
def test_a_save_that_was_cut_off_is_copied_again_or_an_earlier_step_is_named(way: str) -> None:
    os.mkdir("steps")
    orbax("steps/1/default", {"w": jnp.asarray(W)})
    shutil.copytree("steps/1", "whole")
    shutil.copytree("steps/1", "2")
    (Path("2/default") / "_METADATA").unlink()
    hint_of(lambda: bs.open("2/default"), "save or copy it again, or name an earlier step.")
    if way == "again":
        shutil.rmtree("2")
        shutil.copytree("whole", "2")
    made = bs.open("2" if way == "again" else "steps/1")
    assert made["w"].tolist() == W.tolist()


def test_damaged_chunks_are_copied_again() -> None:
    orbax("whole", {"w": jnp.asarray(W)})
    shutil.copytree("whole", "damaged")
    for file in Path("damaged").rglob("d/*"):
        os.truncate(file, 1)
    hint_of(lambda: bs.open("damaged")["w"], "The checkpoint is damaged or incomplete: copy or save it again.")
    shutil.rmtree("damaged")
    shutil.copytree("whole", "damaged")
    assert bs.open("damaged")["w"].tolist() == W.tolist()


def test_two_leaves_of_one_name_are_saved_with_other_keys() -> None:
    tree = {"a.b": jnp.asarray(W), "a": {"b": jnp.asarray(W + 1)}}
    orbax("two", tree)
    hint_of(lambda: bs.open("two"), "Restore it with orbax, and save it with other keys.")
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(Path("two").absolute())
    orbax("three", {"a_b": restored["a.b"], "a": restored["a"]})
    made = bs.open("three")
    assert {name: array.tolist() for name, array in made.items()} == {
        "a_b": restored["a.b"].tolist(),
        "a.b": restored["a"]["b"].tolist(),
    }


def test_a_damaged_pickle_is_saved_again() -> None:
    torch.save(STATE, "x.pt")
    with zipfile.ZipFile("x.pt") as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile("x.pt", "w") as spoilt:
        for name, data in members.items():
            spoilt.writestr(name, data[: len(data) // 2] if name.endswith("data.pkl") else data)
    hint_of(lambda: bs.open("x.pt"), "Download or save it again.")
    torch.save(STATE, "x.pt")
    assert bs.open("x.pt")["w"].tolist() == W.tolist()


def test_a_pickle_with_too_much_beside_tensors_is_saved_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1, 4, bias=False)
    torch.save({"model": model.state_dict(), "log": [[i] for i in range(3000)]}, "x.pt")
    monkeypatch.setattr(pickle_opcodes, "MOST_STEPS", 2000)
    hint = hint_of(lambda: bs.open("x.pt"), "Save the tensors alone: ")
    exec(quoted(hint)[0], {"torch": torch, "model": model, "PATH": "alone.pt"})
    assert bs.open("alone.pt")["weight"].tolist() == model.weight.tolist()


def other_byte_order(path: str) -> None:
    """A file of torch as a machine of the other byte order saves it."""
    torch.save(STATE, "own.pt")
    with zipfile.ZipFile("own.pt") as own, zipfile.ZipFile(path, "w") as made:
        for name in own.namelist():
            data = own.read(name)
            swapped = np.frombuffer(data, "<f4").astype(">f4").tobytes() if "/data/" in name else data
            made.writestr(name, b"big" if name.endswith("byteorder") else swapped)
    os.remove("own.pt")


def test_a_file_of_the_other_byte_order_is_saved_again_by_torch() -> None:
    other_byte_order("x.pt")
    hint = hint_of(lambda: bs.open("x.pt"), "Load it with torch, and save it again: ")
    exec(quoted(hint)[0], {"torch": torch, "PATH": "x.pt"})
    assert bs.open("model.pt")["w"].tolist() == W.tolist()


def test_a_dtype_of_a_newer_library_is_read_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(dtype: object) -> Any:
        raise TypeError("no such dtype")

    with monkeypatch.context() as patch:
        patch.setattr(store_arrays, "to_numpy", older)
        assert quoted(hint_of(lambda: bs.open("m.safetensors")["w"], "Update it: ")) == ["pip install -U ml_dtypes"]
    assert bs.open("m.safetensors")["w"].tolist() == W.tolist()


def test_a_file_that_another_program_wrote_to_is_read_by_the_next_run() -> None:
    opened = bs.open("m.safetensors")
    assert opened["w"].tolist() == W.tolist()
    checkpoints.write("new.safetensors", {"w": W + 1, "ids": np.array([1, 2])})
    os.replace("new.safetensors", "m.safetensors")
    hint_of(opened.source.verify_unchanged, "wait until that is done, and run again.")
    assert run(DOUBLE)["w"] == ((W + 1) * 2).tolist()


def test_a_file_that_was_cut_while_it_was_read_is_restored() -> None:
    whole = Path("m.safetensors").read_bytes()
    opened = bs.open("m.safetensors")
    assert opened["ids"].tolist() == [1, 2]
    os.truncate("m.safetensors", 20)
    hint_of(lambda: opened["w"], "restore it and run again.")
    Path("m.safetensors").write_bytes(whole)
    assert run(DOUBLE)["w"] == (W * 2).tolist()


# --- Archives with a password -----------------------------------------------------------------------------------------


class Cipher:
    """The traditional cipher of zip archives (APPNOTE.TXT, 6.1)."""

    def __init__(self, password: bytes):
        self.keys = [305419896, 591751049, 878082192]
        for byte in password:
            self._update(byte)

    def _update(self, byte: int) -> None:
        a, b, c = self.keys
        a = _crc(a, byte)
        b = ((b + (a & 255)) * 134775813 + 1) & 0xFFFFFFFF
        self.keys = [a, b, _crc(c, b >> 24)]

    def encrypt(self, data: bytes) -> bytes:
        made = bytearray()
        for byte in data:
            key = self.keys[2] | 2
            made.append(byte ^ (((key * (key ^ 1)) >> 8) & 255))
            self._update(byte)
        return bytes(made)


def _crc(value: int, byte: int) -> int:
    return (zlib.crc32(bytes([byte]), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF) & 0xFFFFFFFF


def encrypted(path: str, name: str, data: bytes, password: bytes) -> None:
    """An archive of one member that only a password opens."""
    crc = zlib.crc32(data)
    stored = Cipher(password).encrypt(bytes(11) + bytes([crc >> 24]) + data)
    fields = struct.pack("<HHHHHIIIHH", 20, 1, 0, 0, 33, crc, len(stored), len(data), len(name), 0)
    local = b"PK\x03\x04" + fields + name.encode() + stored
    central = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    Path(path).write_bytes(local + central + end)


def test_an_archive_with_a_password_is_packed_again_without_one() -> None:
    np.save("w.npy", W)
    encrypted("n.npz", "w.npy", Path("w.npy").read_bytes(), b"secret")
    os.remove("w.npy")
    hint_of(lambda: bs.open("n.npz"), "Unpack the archive with its password, and pack it again without one")
    with zipfile.ZipFile("n.npz") as locked:
        locked.extractall("unpacked", pwd=b"secret")
    with zipfile.ZipFile("n.npz", "w", zipfile.ZIP_STORED) as opened:
        opened.write("unpacked/w.npy", "w.npy")
    assert bs.open("n.npz")["w"].tolist() == W.tolist()


def test_a_config_of_an_adapter_that_is_no_json_is_corrected() -> None:
    os.mkdir("hf")
    shutil.copy("m.safetensors", "hf/model.safetensors")
    Path("hf/config.json").write_text("{n: 1}")
    check = {"assert": {"config": {"of": "n", "is": 1}}}
    hint_of(lambda: run(check, DOUBLE, inputs="m::hf"), "Correct its text.")
    Path("hf/config.json").write_text(json.dumps({"n": 1}))
    assert run(check, DOUBLE, inputs="m::hf")["w"] == (W * 2).tolist()
