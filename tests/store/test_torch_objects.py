"""Torch files whose pickles hold more than tensors, as trainers write them: all tensors are read, and what stands
beside them is named, not made."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pathlib
import random
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.detect import open_source
from tests.checkpoints import bits

STATE = collections.OrderedDict((f"layer.{i}.weight", torch.full((2, 3), float(i))) for i in range(3))


class AttributeDict(dict[str, Any]):
    """As Lightning keeps hyperparameters."""


class DictConfig:
    """As OmegaConf keeps a configuration: all of it in a private attribute."""

    def __init__(self) -> None:
        self.__dict__["_content"] = {"lr": 0.1}


class LossScaler:
    pass


class ModelCheckpoint:
    pass


class Mode(enum.Enum):
    A = 1


CLASSES = {
    AttributeDict: "pytorch_lightning.utilities.parsing",
    DictConfig: "omegaconf.dictconfig",
    LossScaler: "deepspeed.runtime.fp16.loss_scaler",
    ModelCheckpoint: "pytorch_lightning.callbacks.model_checkpoint",
    Mode: "fairseq.dataclass.constants",
}


@pytest.fixture(autouse=True)
def classes_of_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the classes be those of libraries that are not installed."""
    for kind, name in CLASSES.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            if module not in sys.modules:
                monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        monkeypatch.setattr(kind, "__module__", name)
        monkeypatch.setattr(sys.modules[name], kind.__name__, kind, raising=False)


OBJECTS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, str]]] = {
    "nothing": (lambda: {}, {}),
    "hyperparameters of Lightning": (lambda: {"hparams": AttributeDict(lr=0.1)}, {"hparams.lr": "float"}),
    "a class as a key": (
        lambda: {"callbacks": {ModelCheckpoint: {"monitor": "x"}}},
        {"callbacks": "dict"},
    ),
    "arguments": (lambda: {"args": argparse.Namespace(lr=[0.1])}, {"args": "argparse.Namespace"}),
    "OmegaConf": (lambda: {"cfg": DictConfig()}, {"cfg": "omegaconf.dictconfig.DictConfig"}),
    "DeepSpeed": (lambda: {"scaler": LossScaler()}, {"scaler": "deepspeed.runtime.fp16.loss_scaler.LossScaler"}),
    "a number of numpy": (lambda: {"best": np.float64(0.5)}, {"best": "numpy._core.multiarray.scalar"}),
    "an array of numpy": (lambda: {"h": np.arange(3.0)}, {"h": "numpy._core.multiarray._reconstruct"}),
    "the state of numpy's generator": (
        lambda: {"rng": np.random.RandomState(0).get_state()},
        {"rng.0": "str", "rng.1": "numpy._core.multiarray._reconstruct", **dict.fromkeys(("rng.2", "rng.3"), "int"),
         "rng.4": "float"},
    ),
    "the state of Python's generator": (
        lambda: {"rng": random.Random(0).getstate()}, {"rng.0": "int", "rng.1": "tuple", "rng.2": "NoneType"}
    ),
    "a path": (lambda: {"dir": pathlib.PurePosixPath("/x")}, {"dir": "pathlib.PurePosixPath"}),
    "a date": (lambda: {"t": datetime.datetime(2024, 1, 1)}, {"t": "datetime.datetime"}),
    "a defaultdict": (lambda: {"m": collections.defaultdict(list, a=[1])}, {"m.a": "list"}),
    "a set": (lambda: {"s": {1, 2}}, {"s": "builtins.set"}),
    "a frozenset": (lambda: {"s": frozenset({1})}, {"s": "builtins.frozenset"}),
    "a counter": (lambda: {"c": collections.Counter("ab")}, {"c.a": "int", "c.b": "int"}),
    "a deque": (lambda: {"d": collections.deque([1])}, {"d.0": "int"}),
    "an enum": (lambda: {"mode": Mode.A}, {"mode": "fairseq.dataclass.constants.Mode"}),
    "a dtype, a device and a size": (
        lambda: {"d": torch.float16, "v": torch.device("cpu"), "s": torch.Size([1, 2])},
        {"d": "DType", "v": "torch.device", "s": "tuple"},
    ),
    "a complex number": (lambda: {"c": 1 + 2j}, {"c": "builtins.complex"}),
    "bytes": (lambda: {"b": b"abc", "a": bytearray(b"abc")}, {"b": "_codecs.encode", "a": "builtins.bytearray"}),
    "a range and a slice": (lambda: {"r": range(3), "s": slice(1, 2)}, {"r": "builtins.xrange", "s": "builtins.slice"}),
    "a scheme of quantization": (lambda: {"q": torch.per_tensor_affine}, {"q": "name"}),
    "odd atoms": (
        lambda: {"x": None, "y": True, "z": 10**30, "e": ...},
        {"x": "NoneType", "y": "bool", "z": "int", "e": "name"},
    ),
    "empty containers": (
        lambda: {"d": {}, "l": [], "t": (), "o": collections.OrderedDict()},
        {"d": "dict", "l": "list", "t": "tuple", "o": "collections.OrderedDict"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_are_read_whatever_lies_beside_them(tmp_path: Path, name: str, protocol: int) -> None:
    make, left_out = OBJECTS[name]
    torch.save({"module": STATE, **make()}, tmp_path / "m.pt", pickle_protocol=protocol)
    source = open_source(str(tmp_path / "m.pt"))
    assert list(source.header.tensors) == [f"module.{name}" for name in STATE]
    for name, tensor in STATE.items():
        assert bits(source.read(f"module.{name}")) == bits(tensor.numpy())
    assert source.header.left_out.keys() == left_out.keys()
    if protocol == 2:  # others spell some kinds differently
        assert source.header.left_out == left_out
    assert source.header.notes == ()


@pytest.mark.parametrize("name", OBJECTS)
def test_a_state_dict_is_read_whatever_lies_beside_it(tmp_path: Path, name: str) -> None:
    make, left_out = OBJECTS[name]
    torch.save({"epoch": 1, "state_dict": STATE, **make()}, tmp_path / "m.ckpt")
    source = open_source(str(tmp_path / "m.ckpt"))
    assert list(source.header.tensors) == list(STATE)
    outermost = dict.fromkeys(name.partition(".")[0] for name in left_out)
    assert list(source.header.left_out) == ["epoch", *outermost]


def test_nothing_that_a_file_names_is_imported(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "args": argparse.Namespace(a=1)}, tmp_path / "m.pt")
    code = (
        "import sys, brainsurgery_jax.store.detect as d; before = set(sys.modules);"
        f"d.open_source({str(tmp_path / 'm.pt')!r}).read('w');"
        "print(sorted({'argparse', 'torch'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


# --- Tensors of other kinds -------------------------------------------------------------------------------------------


def test_conjugates_and_negatives_that_torch_notes_by_a_flag_are_read_as_their_values(tmp_path: Path) -> None:
    z = torch.view_as_complex(torch.arange(24.0).reshape(3, 4, 2))
    tensors = {"conj": z.conj(), "neg": z.clone().conj().imag, "z": z}
    assert tensors["neg"].is_neg()
    torch.save(tensors, tmp_path / "m.pt")
    source = open_source(str(tmp_path / "m.pt"))
    for name, tensor in tensors.items():
        expected = tensor.resolve_conj().resolve_neg().contiguous().numpy()
        assert bits(source.read(name)) == bits(expected), name
        assert bits(source.read_range(name, 1, 5)) == bits(expected.reshape(-1)[1:5]), name
        assert (source.file_run(name, 0, 1) is None) == (name != "z")


SPARSE = torch.eye(3).to_sparse()


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def meta() -> torch.Tensor:
    return torch.empty(2, device="meta")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [lambda: SPARSE, quantized, meta], ids=["sparse", "quantized", "meta"])
def test_a_tensor_that_cannot_be_read_is_noted_beside_a_model_and_refused_within(tmp_path: Path, make: Any) -> None:
    path = str(tmp_path / "m.pt")
    torch.save({"module": STATE, "odd": make()}, path)
    (note,) = bs.open(path).notes
    assert (note.code, note.message.split("not read: ")[1].startswith("odd: it ")) == ("input-unread", True)
    torch.save({"w": torch.ones(2), "odd": make()}, path)
    with pytest.raises(StoreError, match=rf"tensor 'odd': cannot be read: it .*\n.*without it, write '{path}::-odd'"):
        bs.open(path)
    assert list(bs.open(f"{path}::-odd")) == ["w"]


def test_tensors_inside_of_an_object_are_noted_and_a_file_of_nothing_else_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "yolo.pt")
    torch.save({"model": torch.nn.Linear(2, 2), "ema": None}, path)
    with pytest.raises(StoreError, match=r"holds no tensor, but objects, .*Linear\. Nothing was run\n.*state_dict\(\)"):
        bs.open(path)
    torch.save({"state_dict": STATE, "ema": torch.nn.Linear(2, 2)}, path)
    checkpoint = bs.open(path)
    assert list(checkpoint) == list(STATE)
    (note,) = checkpoint.notes
    assert "the tensors inside of objects are not read: 'ema' (torch.nn.modules.linear.Linear)" in note.message


def test_what_is_a_list_at_the_top_goes_by_numbers(tmp_path: Path) -> None:
    torch.save([STATE, {"x": torch.ones(1)}], tmp_path / "list.pt")
    torch.save((torch.ones(2), torch.zeros(3)), tmp_path / "tuple.pt")
    assert list(bs.open(str(tmp_path / "list.pt"))) == [*(f"0.{name}" for name in STATE), "1.x"]
    assert list(bs.open(str(tmp_path / "tuple.pt"))) == ["0", "1"]


def test_integers_are_keys_and_shared_containers_are_read_under_each_name(tmp_path: Path) -> None:
    shared = {"w": torch.ones(2)}
    torch.save({1: torch.ones(1), "a": {2: torch.ones(2)}, "b": shared, "c": shared}, tmp_path / "m.pt")
    assert list(bs.open(str(tmp_path / "m.pt"))) == ["1", "a.2", "b.w", "c.w"]


# --- As trainers write them -------------------------------------------------------------------------------------------


def prefixed(prefix: str, factor: float = 1) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor * factor for name, tensor in STATE.items()}


def training(**parts: Any) -> dict[str, Any]:
    """As loops write it after a step of an optimizer."""
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in STATE.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    more = {"optimizer": optimizer.state_dict(), "iter_num": 5, "config": {"compile": True, "dtype": "bfloat16"}}
    return {**parts, **more, "best": torch.tensor(2.5)}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_model_beside_its_optimizer_is_read_with_it_and_alone_as_a_part(tmp_path: Path, prefix: str) -> None:
    path = str(tmp_path / "ckpt.pt")
    torch.save(training(model=prefixed(prefix)), path)
    checkpoint = bs.open(path)
    assert {f"model.{prefix}{name}" for name in STATE} | {"best", "optimizer.state.0.exp_avg"} <= set(checkpoint)
    assert checkpoint.notes == ()
    alone = bs.open(f"{path}::model")
    assert list(alone) == [prefix + name for name in STATE]
    assert alone.notes == () and alone.left_out == ()


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt.tar", ".ckpt"])
def test_nothing_hides_beside_a_state_dict(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"timm{suffix}")
    torch.save(training(state_dict=prefixed("module."), state_dict_ema=prefixed("module.", 2)), path)
    checkpoint = bs.open(path)
    assert list(checkpoint) == [f"module.{name}" for name in STATE]
    assert set(checkpoint.left_out) == {"iter_num", "config"}
    (note,) = checkpoint.notes
    found = "state_dict_ema (3 tensors), optimizer (9 tensors), best (1 tensor)"
    assert note.message == f"{path}: 'state_dict' is read; beside it there are {found}"
    assert note.hint == f"To read another part, write '{path}::state_dict_ema'; to read all of it, '{path}::.'."
    ema = bs.open(f"{path}::state_dict_ema")
    assert [float(ema[name][0, 0]) for name in ema] == [0, 2, 4]
    assert len(bs.open(f"{path}::.")) == 3 + 3 + 9 + 1


def test_several_models_in_one_file_are_an_error_that_lists_them(tmp_path: Path) -> None:
    path = str(tmp_path / "both.pt")
    torch.save({"state_dict": {"w": torch.zeros(2)}, "model": {"w": torch.ones(2)}}, path)
    with pytest.raises(StoreError, match=r"holds several models: 'state_dict', 'model'\n") as caught:
        bs.open(path)
    for part, names in (("state_dict", ["w"]), ("model", ["w"]), (".", ["state_dict.w", "model.w"])):
        assert f"'{path}::{part}'" in str(caught.value)
        assert list(bs.open(f"{path}::{part}")) == names


@pytest.mark.parametrize(
    ("root", "names"),
    [
        ({"state_dict": {}, "model": {"w": torch.ones(1)}}, ["model.w"]),
        ({"params_ema": {"w": torch.ones(1)}, "params": {"w": torch.zeros(1)}}, ["params_ema.w", "params.w"]),
        ({"model_state_dict": {"w": torch.ones(1)}, "ema_state_dict": {"w": torch.ones(1), "n": torch.tensor(7)}},
         ["model_state_dict.w", "ema_state_dict.w", "ema_state_dict.n"]),
    ],
)  # fmt: skip
def test_without_a_full_state_dict_everything_is_read(tmp_path: Path, root: Any, names: list[str]) -> None:
    torch.save(root, tmp_path / "m.pt")
    assert list(bs.open(str(tmp_path / "m.pt"))) == names


def diffusion() -> Iterator[tuple[str, torch.Tensor]]:
    """As the first releases of Stable Diffusion: live weights, and their averages under names without dots."""
    live = {f"model.diffusion_model.{n}.weight": torch.full((2,), float(n)) for n in range(2)}
    yield "betas", torch.rand(3)
    yield "model_ema.num_updates", torch.tensor(470000, dtype=torch.int32)
    yield from live.items()
    yield from (("model_ema." + name.removeprefix("model.").replace(".", ""), t + 100) for name, t in live.items())


def test_a_checkpoint_of_stable_diffusion_with_a_callback_of_lightning_is_read(tmp_path: Path) -> None:
    callbacks = {ModelCheckpoint: {"monitor": "val/loss", "best_model_score": torch.tensor(0.1)}}
    state = dict(diffusion())
    root = {"epoch": 0, "state_dict": state, "callbacks": callbacks, "pytorch-lightning_version": "1.4.2"}
    torch.save(root, tmp_path / "sd.ckpt")
    checkpoint = bs.open(str(tmp_path / "sd.ckpt"))
    assert list(checkpoint) == list(state)
    assert all(bits(checkpoint[name]) == bits(tensor.numpy()) for name, tensor in state.items())
    assert checkpoint.left_out == ("epoch", "pytorch-lightning_version")
    (note,) = checkpoint.notes
    assert "beside it there are callbacks (1 tensor)" in note.message
