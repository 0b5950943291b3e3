"""One tensor of a file, under a name: `load` with `to` and `save` with `target`, in the formats of single tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import bits, counting, read, write


@pytest.mark.parametrize("format", ["auto", "numpy"])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_an_array_of_numpy_is_loaded_under_a_name(tmp_path: Path, name: str, format: str) -> None:
    np.savez(tmp_path / "x.npz", anything=counting((3,)))
    np.save(tmp_path / "x.npy", counting((3,)))
    assert loaded(tmp_path, name, format) == [0, 1, 2]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"x": x}, lambda x: {"state_dict": {"x": x}, "epoch": 1}])
def test_a_tensor_of_torch_is_loaded_under_a_name(tmp_path: Path, wrap: Callable[[torch.Tensor], Any]) -> None:
    torch.save(wrap(torch.arange(3.0)), tmp_path / "x.pt")
    assert loaded(tmp_path, "x.pt", "torch") == [0, 1, 2]


def loaded(folder: Path, name: str, format: str) -> list[float]:
    source = write(folder / "m.safetensors", {"a": counting((2,))})
    step = {"load": {"path": str(folder / name), "to": "model::b", "format": format}}
    output = folder / "out.safetensors"
    bs.load({"inputs": [str(source)], "transforms": [step], "output": str(output)}).run(durable=False)
    return read(output)["b"].tolist()


@pytest.mark.parametrize("format", ["npy", "numpy"])
def test_a_tensor_is_saved_as_an_array_of_numpy(tmp_path: Path, format: str) -> None:
    source = write(tmp_path / "m.safetensors", {"a": counting((2,)), "b": counting((4,))})
    step = {"save": {"path": str(tmp_path / "b.npy"), "target": "model::b", "format": format}}
    bs.load({"inputs": [str(source)], "transforms": [step]}).run(durable=False)
    assert bits(np.load(tmp_path / "b.npy")) == bits(counting((4,)))


def test_a_file_of_several_tensors_is_not_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=counting((3,)), b=counting((3,)))
    with pytest.raises(PlanError, match=r"holds 2 tensors; `to` takes a file with exactly one"):
        loaded(tmp_path, "x.npz", "auto")
