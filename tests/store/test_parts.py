"""What of a folder is a checkpoint's: every entry is either that or foreign, whatever else lies beside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.store.folder import is_stock_weights
from brainsurgery_jax.store.parts import parts_of

STOCK = (
    "model.safetensors", "model-00001-of-00002.safetensors", "model.fp16.safetensors", "pytorch_model.bin",
    "pytorch_model-00002-of-00003.bin", "consolidated.00.pth", "tf_model.h5", "flax_model.msgpack", "adapter_model.bin",
    "diffusion_pytorch_model.non_ema.safetensors", "weights.00.npz", "model.onnx", "adapters.safetensors",
    "model.fp32-00001-of-00002.safetensors", "__0_0.distcp",
)  # fmt: skip
SIDE = (
    "config.json",
    "tokenizer.json",
    "README.md",
    "LICENSE",
    "model.safetensors.index.json",
    "brainsurgery.lock.json",
)
FOREIGN = (
    "ema.safetensors", "model-ema.safetensors", "model_best.pt", "optimizer.pt", "training_args.bin", "rng_state_0.pth",
    "q4.gguf", "notes.txt", "train.py", "trainer_state.json", ".gitattributes", ".model.safetensors", ".metadata.bak",
    "plan.yaml", "token.txt", "_METADATA.old", "d", "Makefile",
)  # fmt: skip
FOLDERS = (".git", "src", "runs", "onnx", "1_Pooling", "d", "state", ".cache", "checkpoint-500")


@pytest.mark.parametrize("name", STOCK[:-1])
def test_the_names_that_libraries_give_to_weights_are_known(name: str) -> None:
    assert is_stock_weights(name)


@given(
    st.sets(st.sampled_from(STOCK), min_size=1), st.sets(st.sampled_from(SIDE)), st.sets(st.sampled_from(FOREIGN)),
    st.sets(st.sampled_from(FOLDERS)),
)  # fmt: skip
def test_every_entry_is_the_checkpoints_or_foreign(
    stock: set[str], side: set[str], foreign: set[str], folders: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in stock | side | foreign:
            Path(folder, name).touch()
        for name in folders - foreign:
            Path(folder, name).mkdir()
            Path(folder, name, "model.safetensors").touch()
        found = parts_of(folder)
    assert set(found.files) == stock | side
    assert set(found.foreign) == foreign | {f"{name}/" for name in folders - foreign}
    assert (found.folders, found.whole) == ((), True)


@given(st.sets(st.sampled_from(FOREIGN[:3]), min_size=2))
def test_files_of_weights_that_nothing_connects_are_nobodys(names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            Path(folder, name).touch()
        found = parts_of(folder)
        assert (found.files, set(found.foreign)) == ((), names)
        assert set(parts_of(folder, own=names).files) == names  # but those that an input is read from are its own
        assert os.listdir(folder)


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("compression", [True, False])
def test_an_orbax_output_may_be_replaced_however_it_is_packed(tmp_path: Path, version: str, compression: bool) -> None:
    """The folder of a process has a random name where tensorstore chooses it."""
    for value in (1, 2):
        tree = {"w": np.full((3, 4), value, np.float32)}
        options = {"version": version, "compression": compression}
        bs.save(str(tmp_path / "out"), tree, format="orbax", options=options, overwrite=True, durable=False)
        assert parts_of(str(tmp_path / "out")).foreign == ()
    assert np.asarray(bs.open(str(tmp_path / "out"))["w"]).max() == 2
