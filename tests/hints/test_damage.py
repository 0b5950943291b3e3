"""Where a part of a checkpoint is missing, no hint deletes what tells so: the missing part brings all back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from tests import checkpoints


def sharded(folder: Path) -> Path:
    """A folder of two shards with an index."""
    folder.mkdir()
    checkpoints.write(folder / "model-00001-of-00002.safetensors", {"a": np.ones(2, np.float32)})
    checkpoints.write(folder / "model-00002-of-00002.safetensors", {"b": np.zeros(2, np.float32)})
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def distributed(folder: Path) -> Path:
    """A folder as torch.distributed.checkpoint writes it."""
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"a": torch.ones(2), "b": torch.zeros(2)}, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "part"),
    [
        (sharded, "model-00002-of-00002.safetensors"),
        (distributed, "__0_0.distcp"),
        (distributed, ".metadata"),
    ],
)
def test_a_missing_part_is_fetched_and_nothing_is_deleted(make, part: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "whole")
    missing = (folder / part).read_bytes()
    (folder / part).unlink()
    with pytest.raises(bs.StoreError) as refused:
        bs.open(str(folder))
    assert not re.search("delete|remove", refused.value.remedy, re.IGNORECASE)
    assert re.search("[Ff]etch|again", refused.value.remedy)
    (folder / part).write_bytes(missing)
    assert {name: array.tolist() for name, array in bs.open(str(folder)).items()} == {"a": [1, 1], "b": [0, 0]}


def test_a_stale_index_is_no_reason_to_read_what_lies_beside_it(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "stale")
    checkpoints.write(folder / "model-00001-of-00002.safetensors", {"a": np.ones(2), "old": np.ones(2)})
    with pytest.raises(bs.StoreError, match="index does not list it") as refused:
        bs.open(str(folder))
    assert "delete" not in refused.value.remedy
