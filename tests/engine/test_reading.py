"""Leaves that are read a piece at a time while they are computed on: the same bits, each byte read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.api import run
from brainsurgery_jax.index import parts
from brainsurgery_jax.world import Files
from tests.checkpoints import plan_of, read

SHAPE = (100, 77)


def models(dtype: Any) -> dict[str, np.ndarray]:
    """Three tensors with NaN, infinities, zeros of both signs and numbers that are subnormal in float32."""
    made = {}
    for seed, name in enumerate(("x", "y", "z")):
        draw = np.random.default_rng(seed)
        flat = draw.normal(size=SHAPE).astype(np.float32).reshape(-1)
        for number in (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40):
            flat[draw.integers(0, flat.size, 20)] = number
        made[name] = flat.reshape(SHAPE).astype(dtype)
    return made


EDITS: dict[str, list[dict[str, Any]]] = {
    "a sum": [{"add": {"from_a": "x", "from_b": "y", "to": "z"}}],
    "an operand twice": [{"add": {"from_a": "x", "from_b": "x", "to": "z"}}],
    "a chain": [{"scale_": {"target": "x", "by": 0.3}}, {"add": {"from_a": "x", "from_b": "y", "to": "z"}}],
    "an operand of two": [{"compute": {"from": {"p": "x", "q": "y"}, "expr": "p * q + p", "to": "made"}}],
    "a cast": [{"cast_": {"target": "x", "to": "float32"}}],
}


def written(folder: Path, edits: Any) -> tuple[dict[str, bytes], int]:
    """The bits of what a plan writes, and the bytes that it reads into memory."""
    files = Files()
    plan = plan_of(folder, models(ml_dtypes.bfloat16), edits)
    run(bs.load(plan), world=files, durable=False)
    return {name: x.tobytes() for name, x in read(plan["output"]["path"]).items()}, files.bytes_read


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("length", [96, 1000, 10_000])
def test_no_length_of_a_piece_changes_a_bit_or_reads_a_byte_twice(
    name: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(tmp_path, EDITS[name])
    monkeypatch.setattr(parts, "PIECE", length)
    assert written(tmp_path, EDITS[name]) == whole
