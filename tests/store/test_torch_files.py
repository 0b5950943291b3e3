"""Files of `torch.save`, against torch: read without it, written with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.store.detect import open_source
from tests.checkpoints import SAVABLE, bits, counting, normal, np_dtype, write

NEW = ("float8", "uint16", "uint32", "uint64")
OLD_DTYPES = [d for d in SAVABLE if not d.name.startswith(NEW)]
"""Those that torch had before its archives."""


def tensor(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape)


def save(path: Path, root: Any, *, old: bool = False) -> str:
    torch.save(root, path, _use_new_zipfile_serialization=not old)
    return str(path)


def converted(source: Path, target: Path, **output: object) -> Path:
    bs.load({"inputs": [str(source)], "transforms": [], "output": {"path": str(target)} | output}).run(durable=False)
    return target


def raw(x: torch.Tensor) -> bytes:
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("dtype", "old"), [*((d, False) for d in SAVABLE), *((d, True) for d in OLD_DTYPES)])
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, dtype: DType, old: bool) -> None:
    x = tensor(3, 4).to(getattr(torch, dtype.name))
    checkpoint = bs.open(save(tmp_path / "m.pt", {"x": x}, old=old))
    assert checkpoint.avals["x"].dtype == dtype
    assert bits(checkpoint["x"]) == raw(x)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
def test_whatever_way_a_tensor_lies_in_its_storage_it_is_read_right(tmp_path: Path, old: bool) -> None:
    x = tensor(4, 6)
    views = {
        "whole": x, "transposed": x.t(), "columns": x[:, 1:4], "rows": x[1:3], "every other": x[::2, ::3],
        "expanded": x.expand(2, 4, 6), "scalar": x[2, 3], "empty": x[:0], "parameter": torch.nn.Parameter(x[2]),
        "permuted": tensor(2, 3, 4).permute(2, 0, 1),
    }  # fmt: skip
    source = open_source(save(tmp_path / "m.pt", views, old=old))
    for name, view in views.items():
        expected = view.detach().numpy()
        assert bits(source.read(name)) == bits(expected), name
        middle = slice(expected.size // 3, expected.size - 1)
        if expected.size > 1:
            found = source.read_range(name, middle.start, middle.stop)
            assert bits(found) == bits(expected.reshape(-1)[middle]), name
    assert bits(source.read("permuted", ((1, 4, 2), (0, 2, 1), (2, 3, 1)))) == bits(views["permuted"][1:4:2, :, 2:3])
    runs = {name for name in views if source.file_run(name, 0, 1 if views[name].numel() else 0)}
    assert runs == {"whole", "rows", "scalar", "empty", "parameter"}


def test_tensors_on_one_storage_are_read_under_each_name(tmp_path: Path) -> None:
    x = tensor(3, 4)
    source = open_source(save(tmp_path / "m.pt", {"embed": x, "head": x, "row": x[1]}))
    runs = [source.file_run(name, 0, 4) for name in ("embed", "head", "row")]
    assert runs[0] == runs[1]
    assert runs[0] is not None and runs[2] is not None and runs[2].offset == runs[0].offset + 16


def test_nested_containers_give_dotted_names_and_other_values_are_listed(tmp_path: Path) -> None:
    root = {"model": {"w": tensor(2)}, "opt": [{"m": tensor(1)}, None], "epoch": 3, "betas": (0.9, 0.95), 7: tensor(1)}
    checkpoint = bs.open(save(tmp_path / "m.pt", root))
    assert list(checkpoint) == ["model.w", "opt.0.m", "7"]
    assert checkpoint.left_out == ("opt.1", "epoch", "betas")


def test_what_trainers_wrap_in_state_dict_goes_by_its_own_names(tmp_path: Path) -> None:
    root = {"state_dict": {"w": tensor(2)}, "optimizer": {"m": tensor(1), "lr": 0.1}, "args": {"a": 1, "b": 2}}
    checkpoint = bs.open(save(tmp_path / "m.pt", root))
    assert list(checkpoint) == ["w"]
    assert checkpoint.left_out == ("args",)


def test_the_state_dict_and_the_optimizer_of_a_real_module_are_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(tensor(2, 3)).sum().backward()
    optimizer.step()
    root = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint = bs.open(save(tmp_path / "m.pt", root))
    assert {f"model.{name}" for name in module.state_dict()} <= set(checkpoint)
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    assert bits(checkpoint["optimizer.state.0.exp_avg"]) == raw(moment)


def test_a_bare_tensor_is_called_like_its_file(tmp_path: Path) -> None:
    assert list(bs.open(save(tmp_path / "emb.pt", tensor(2)))) == ["emb"]


def test_two_leaves_of_one_dotted_name_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"a.b": tensor(1), "a": {"b": tensor(2)}})
    with pytest.raises(StoreError, match=r"tensor 'a\.b': cannot be read: two tensors have this name"):
        open_source(path)


def test_torch_is_not_imported_for_reading(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"x": tensor(2)})
    code = f"import sys, brainsurgery_jax as bs; bs.open({path!r})['x']; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert done.stdout.strip() == "False"


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_with_an_index_is_read_by_it(tmp_path: Path) -> None:
    save(tmp_path / "pytorch_model-00001-of-00002.bin", {"a": tensor(2)})
    save(tmp_path / "pytorch_model-00002-of-00002.bin", {"b": tensor(3)})
    save(tmp_path / "training_args.bin", {"c": tensor(3)})
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert list(bs.open(str(tmp_path))) == ["a", "b"]
    weight_map["c"] = "../m.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(StoreError, match=r"names the shard '\.\./m\.bin', which is outside of its folder"):
        bs.open(str(tmp_path))


def test_what_trainers_leave_beside_the_weights_does_not_count(tmp_path: Path) -> None:
    save(tmp_path / "model.pt", {"a": tensor(2)})
    for name in ("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "training_args.bin"):
        (tmp_path / name).write_bytes(b"of no interest")
    assert list(bs.open(str(tmp_path))) == ["a"]


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "consolidated.00.pth", {"a": tensor(2)})
    save(tmp_path / "consolidated.01.pth", {"a": tensor(2)})
    with pytest.raises(StoreError, match=r"consolidated\.01\.pth: tensor 'a': is also in .*consolidated\.00\.pth"):
        bs.open(str(tmp_path))


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_torch_gets_back_every_dtype_bit_for_bit(tmp_path: Path) -> None:
    tensors = {d.name: normal((3, 4)).astype(np_dtype(d)) for d in SAVABLE} | {"scalar": counting(())}
    target = converted(write(tmp_path / "m.safetensors", tensors), tmp_path / "m.pt")
    found = torch.load(target, weights_only=True)
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert (raw(found[name]), tuple(found[name].shape)) == (bits(array), array.shape)
        assert str(found[name].dtype) == f"torch.{array.dtype.name}"


def test_computed_tensors_are_written_beside_unchanged_ones(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", {"a": counting((3,)), "b": counting((3,))})
    step = {"scale_": {"target": "b", "by": 2}}
    bs.load({"inputs": [str(source)], "transforms": [step], "output": str(tmp_path / "m.bin")}).run(durable=False)
    found = torch.load(tmp_path / "m.bin", weights_only=True)
    assert (found["a"].tolist(), found["b"].tolist()) == ([0, 1, 2], [0, 2, 4])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.safetensors"]


def test_a_folder_gets_pytorch_model_bin_and_the_side_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "model.safetensors", {"a": counting((3,))})
    (tmp_path / "in" / "config.json").write_text("{}")
    converted(tmp_path / "in", tmp_path / "out", format="torch")
    names = ["brainsurgery.lock.json", "config.json", "pytorch_model.bin"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert list(bs.open(str(tmp_path / "out"))) == ["a"]


def test_the_same_plan_writes_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", {"a": counting((3,))})
    one, two = (converted(source, tmp_path / name) for name in ("1.pt", "2.pt"))
    assert one.read_bytes() == two.read_bytes()


def test_there_and_back_gives_the_same_file(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", {"a": counting((3, 4)), "b": counting((2,))}, {"format": "pt"})
    first = converted(source, tmp_path / "1.pt")
    second = converted(converted(first, tmp_path / "2.safetensors"), tmp_path / "2.pt")
    assert first.read_bytes() == second.read_bytes()


def test_without_torch_the_check_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "m.safetensors", {"a": counting((3,))})
    monkeypatch.setattr("brainsurgery_jax.store.torch.encode.find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"needs torch, which is not installed(.|\n)*brainsurgery-jax\[torch\]"):
        converted(source, tmp_path / "m.pt")
