"""Every format of the world of JAX, made by the library that writes it: what it is, opened, inspected and converted.

Rows with names are read; the others are refused by what they are.
"""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import flax
import h5py
import jax
import msgpack
import numpy as np
import optax
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as v1
import pytest
from flax.serialization import to_bytes
from flax.training import checkpoints, orbax_utils
from flax.training.train_state import TrainState

import brainsurgery_jax as bs
from brainsurgery_jax.cli.inspect_ import inspect
from brainsurgery_jax.errors import PlanError, StoreError

PARAMS = {"enc": {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(4, np.float16)},
          "list": [np.ones(2, np.float32), np.full(3, 7, np.int32)]}  # fmt: skip
FLAT = {"enc.w": PARAMS["enc"]["w"], "enc.b": PARAMS["enc"]["b"], "list.0": PARAMS["list"][0],
        "list.1": PARAMS["list"][1]}  # fmt: skip
HAIKU = {"net/~/linear_0": {"w": np.ones((2, 3)), "b": np.zeros(3)}, "net//linear": {"w": np.ones(2)}}


def below(prefix: str, tensors: Mapping[str, np.ndarray] = FLAT) -> dict[str, np.ndarray]:
    return {f"{prefix}.{name}": x for name, x in tensors.items()}


def train_state() -> TrainState:
    return TrainState.create(apply_fn=lambda x: x, params=PARAMS, tx=optax.sgd(1e-2, momentum=0.9))


STATE = {"step": np.asarray(0), **below("params"), **below("opt_state.0.trace", {n: x * 0 for n, x in FLAT.items()})}
"""The tensors of `train_state`."""


def orbax(**how: Any) -> Callable[[Path], object]:
    return lambda here: ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**how)).save(here / "m", PARAMS)


def manager(items: Mapping[str, Any], *steps: int) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        with ocp.CheckpointManager(here / "m", item_names=tuple(items)) as writer:
            for step in steps:
                named = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
                writer.save(step, args=ocp.args.Composite(**named))
            writer.wait_until_finished()

    return make


def cut_off(here: Path) -> None:
    orbax()(here)
    shutil.move(here / "m", here / "m.orbax-checkpoint-tmp-17")


def aggregated(here: Path) -> None:
    """As flax asked orbax to save; versions from 0.5 on aggregate no more, and `test_old_orbax` has files of theirs."""
    state = train_state()
    ocp.PyTreeCheckpointer().save(here / "m", state, save_args=orbax_utils.save_args_from_target(state))


def legacy(*, by_orbax: bool) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        before = flax.config.flax_use_orbax_checkpointing
        flax.config.update("flax_use_orbax_checkpointing", by_orbax)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            checkpoints.save_checkpoint(here, train_state(), 12)
        flax.config.update("flax_use_orbax_checkpointing", before)

    return make


def easylm(here: Path) -> None:
    with open(here / "stream", "wb") as file:
        for name, x in FLAT.items():
            packed = msgpack.packb(((*name.split("."),), to_bytes(x)))
            assert packed is not None
            file.write(packed)


def keras_3(here: Path) -> None:
    with h5py.File(here / "m.weights.h5", "w") as file:
        for at, x in enumerate(FLAT.values()):
            file[f"layers/dense/vars/{at}"] = x


def tensorflow(here: Path) -> None:
    (here / "m").mkdir()
    for name in ("checkpoint", "model.ckpt-10.index", "model.ckpt-10.data-00000-of-00001"):
        (here / "m" / name).write_bytes(b"\0\0")


class Row(NamedTuple):
    """How a checkpoint is made, its address, and its tensors; without these, what it is refused as."""

    make: Callable[[Path], object]
    address: str
    tensors: Mapping[str, np.ndarray] | None = None
    refused: str = ""


ROWS = {
    "orbax": Row(orbax(), "m", FLAT),
    "orbax, plain files": Row(orbax(use_ocdbt=False), "m", FLAT),
    "orbax, zarr 3": Row(orbax(use_zarr3=True), "m", FLAT),
    "orbax of a train state, as flax asks for it": Row(aggregated, "m", STATE),
    "orbax, second API": Row(lambda here: v1.save(here / "m", PARAMS), "m", FLAT),
    "an unfinished save": Row(cut_off, "m.orbax-checkpoint-tmp-17", refused="of which only a part was written"),
    "a manager": Row(manager({"default": PARAMS}, 3), "m", FLAT),
    "a manager with a state": Row(manager({"state": {"params": PARAMS}}, 3), "m", below("params")),
    "a manager with params": Row(manager({"params": PARAMS, "opt": {"mu": PARAMS}}, 3), "m/3/params", FLAT),
    "a manager with two items": Row(
        manager({"items": PARAMS, "state": PARAMS}, 3), "m", refused="holds 2 trees of tensors: 3/items, 3/state"
    ),
    "a manager with two steps": Row(manager({"items": PARAMS}, 3, 4), "m", refused="holds 2 steps: 3, 4"),
    "flax, one file a step": Row(legacy(by_orbax=False), "checkpoint_12", STATE),
    "flax by orbax": Row(legacy(by_orbax=True), "checkpoint_12", STATE),
    "flax msgpack": Row(lambda here: (here / "m.msgpack").write_bytes(to_bytes(PARAMS)), "m.msgpack", FLAT),
    "a stream of EasyLM": Row(easylm, "stream", FLAT),
    "npz of big_vision": Row(
        lambda here: np.savez(here / "m.npz", **{"params/enc/w": FLAT["enc.w"], "opt/0/count": np.array(3)}),
        "m.npz", {"params/enc/w": FLAT["enc.w"], "opt/0/count": np.array(3)},
    ),
    "npz of Haiku": Row(
        lambda here: np.savez(here / "m.npz", **{f"{m}/{n}": x for m, d in HAIKU.items() for n, x in d.items()}),
        "m.npz", {f"{m}/{n}": x for m, d in HAIKU.items() for n, x in d.items()},
    ),
    "a pickle of Haiku": Row(
        lambda here: (here / "m.pkl").write_bytes(pickle.dumps(HAIKU)), "m.pkl", refused="is a pickle of Python"
    ),
    "an old pickle": Row(
        lambda here: (here / "params").write_bytes(pickle.dumps(HAIKU, protocol=3)), "params",
        refused="is a pickle of Python",
    ),
    "a pickle in an npy": Row(
        lambda here: np.save(here / "m.npy", np.array(HAIKU, dtype=object), allow_pickle=True), "m.npy",
        refused="it holds pickled Python objects",
    ),
    "a pickle in an npz": Row(
        lambda here: np.savez(here / "m.npz", params=np.array(HAIKU, dtype=object), w=np.ones(2)), "m.npz",
        refused="it holds pickled Python objects",
    ),
    "the rest of such an npz": Row(
        lambda here: np.savez(here / "m.npz", params=np.array(HAIKU, dtype=object), w=np.ones(2)), "m.npz::-params",
        {"w": np.ones(2)},
    ),
    "Equinox": Row(
        lambda here: eqx.tree_serialise_leaves(here / "m.eqx", PARAMS), "m.eqx",
        {str(at): np.asarray(x) for at, x in enumerate(jax.tree.leaves(PARAMS))},
    ),
    "weights of Keras 3": Row(
        keras_3, "m.weights.h5", {f"layers.dense.vars.{at}": x for at, x in enumerate(FLAT.values())}
    ),
    "a model of Keras 3": Row(
        lambda here: (here / "m.keras").write_bytes(b"PK"), "m.keras", refused="is an archive of Keras"
    ),
    "TensorFlow": Row(tensorflow, "m", refused="holds a checkpoint of TensorFlow"),
    "what gzip made of a file": Row(
        lambda here: (here / "m.npz.gz").write_bytes(gzip.compress(b"PK")), "m.npz.gz", refused="is a compressed file"
    ),
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert sorted(found) == sorted(expected)
    for name, x in expected.items():
        one, other = np.asarray(found[name]), np.asarray(x)
        assert (one.dtype, one.shape, one.tolist()) == (other.dtype, other.shape, other.tolist()), name


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.tensors is not None])
def test_what_its_library_wrote_is_read_inspected_and_converted(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ROWS[name]
    assert row.tensors is not None
    row.make(here)
    assert_same(bs.open(row.address), row.tensors)
    inspect(row.address, None, "compact", stats=False)
    assert f"{len(row.tensors)} tensor" in capsys.readouterr().out
    bs.convert(row.address, "out.safetensors", layout="none", durable=False)
    assert_same(bs.open("out.safetensors"), row.tensors)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.refused])
def test_what_is_not_read_is_called_what_it_is(name: str, here: Path) -> None:
    row = ROWS[name]
    row.make(here)
    with pytest.raises(StoreError) as caught:
        bs.open(row.address)
    assert row.refused in str(caught.value)
    with pytest.raises((StoreError, PlanError)) as caught:
        bs.convert(row.address, "out.safetensors")
    assert row.refused in str(caught.value)
    assert not os.path.exists("out.safetensors")
