"""What a stranger's pickle can do: nothing. Refusals of all that is no plain tensor, and of damage."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source


class Runs:
    """Pickles as a call of a function with one argument."""

    def __init__(self, function: Callable[..., Any], *given: Any):
        self.function, self.given = function, given

    def __reduce__(self) -> Any:
        return self.function, self.given


def archive(path: Path, root: Any, *, storage: bytes = b"") -> str:
    """An archive as torch makes it, with whatever object in its pickle."""
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("archive/data.pkl", root if isinstance(root, bytes) else pickle.dumps(root, 2))
        target.writestr("archive/data/0", storage)
    return str(path)


@pytest.mark.parametrize("kind", ["zip", "old"])
def test_a_malicious_pickle_is_not_run_and_its_tensors_are_read(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    attack = Runs(os.system, f"touch {victim}")
    path = tmp_path / "m.pt"
    torch.save({"w": attack, "x": torch.ones(2)}, path, _use_new_zipfile_serialization=kind == "zip")
    source = open_source(str(path))
    assert (list(source.header.tensors), source.header.left_out) == (["x"], {"w": "posix.system"})
    assert not victim.exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert victim.exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, open, __import__, torch.load, torch.hub.load, type, super])
def test_a_function_that_could_be_used_for_harm_is_a_name_and_no_more(tmp_path: Path, function: Any) -> None:
    with pytest.raises(StoreError, match=r"holds no tensor, but objects, which are not made: [\w.]+\. Nothing was run"):
        open_source(archive(tmp_path / "m.pt", {"w": Runs(function, "1")}))


def test_a_pickled_module_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(StoreError, match=r"an object of 'torch\.nn\.modules\.linear\.Linear'(.|\n)*state_dict"):
        open_source(str(path))


def test_a_program_of_torchscript_is_refused_with_advice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as target:
        target.writestr("m/data.pkl", pickle.dumps({}))
        target.writestr("m/constants.pkl", b"")
    with pytest.raises(StoreError, match=r"is a TorchScript program(.|\n)*torch\.jit\.load"):
        open_source(str(tmp_path / "m.pt"))


@pytest.mark.parametrize(
    "root",
    [
        b"", b"\x80", b"cos\n", b"\x80\x02}q\x00.garbage"[:3], pickle.dumps({"a": 1}, 2)[:-3],
        b"\x80\x02(lp0\n0.", b"}(X\x01\x00\x00\x00aX\x01\x00\x00\x00bub.",
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_a_clear_error(tmp_path: Path, root: bytes) -> None:
    with pytest.raises(StoreError, match=r"m\.pt: (its pickle is damaged|holds an object)"):
        open_source(archive(tmp_path / "m.pt", root))


@pytest.mark.parametrize("left", [0, 8])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path, left: int) -> None:
    torch.save({"x": torch.arange(12.0)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole:
        root = whole.read("whole/data.pkl")
    with pytest.raises(StoreError, match=rf"tensor 'x': f32\[12\] is said to be in a storage of {left} bytes"):
        open_source(archive(tmp_path / "m.pt", root, storage=bytes(left)))


def test_a_missing_storage_is_named(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(12.0), "y": torch.arange(3)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole:
        root = whole.read("whole/data.pkl")
    with pytest.raises(StoreError, match="lacks the storage '1'"):
        open_source(archive(tmp_path / "m.pt", root, storage=bytes(48)))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("cut", [1, 50, 200])
def test_a_file_that_is_cut_off_is_a_clear_error(tmp_path: Path, old: bool, cut: int) -> None:
    path = tmp_path / "m.pt"
    torch.save({"x": torch.arange(30.0)}, path, _use_new_zipfile_serialization=not old)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(StoreError, match=r"m\.pt: (.*cut off|.*damaged|.*not of the size)"):
        open_source(str(path))


def test_a_structure_made_to_explode_is_refused_early(tmp_path: Path) -> None:
    bomb: list[Any] = []
    for _ in range(60):
        bomb = [bomb, bomb]
    assert open_source(archive(tmp_path / "m.pt", {"a": bomb})).header.tensors == {}


def test_what_is_no_file_of_torch_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(struct.pack("<Q", 7) + b"{}     ")
    with pytest.raises(StoreError, match=r"m\.bin: is not a file of torch\.save"):
        open_source(str(tmp_path / "m.bin"))
