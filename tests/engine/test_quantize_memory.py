"""Quantized weights go by in rows: no run holds more than was projected, and none holds a tensor whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import normal, plan_of
from tests.engine.test_memory import check

ROWS, COLUMNS = 6144, 4096
SOME = normal((1 << 20,))

Tensors = dict[str, np.ndarray]


def filled(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.resize((SOME * 20).astype(np.int32).astype(dtype), shape)


def scaled(rows: int, columns: int) -> Tensors:
    blocks = np.ones((-(-rows // 128), -(-columns // 128)), np.float32)
    return {"w": filled((rows, columns), ml_dtypes.float8_e4m3fn), "w_scale_inv": blocks}


def mxfp4(rows: int, columns: int) -> Tensors:
    shape = (rows, columns // 32)
    return {"w_blocks": filled((*shape, 16), np.uint8), "w_scales": np.full(shape, 120, np.uint8)}


def gptq(rows: int, columns: int) -> Tensors:
    groups = (max(1, columns // 128), rows)
    words = {"w.qweight": filled((columns // 8, rows), np.int32), "w.qzeros": filled((groups[0], rows // 8), np.int32)}
    return {**words, "w.scales": np.ones(groups, np.float16), "w.g_idx": np.arange(columns, dtype=np.int32) // 128}


def floats(rows: int, columns: int) -> Tensors:
    return {"w": filled((rows, columns), ml_dtypes.bfloat16)}


FLOATS = {"dequantize": {"target": ".*", "to": "bfloat16"}}
JOBS: dict[str, tuple[Any, dict[str, Any]]] = {
    "scaled": (scaled, FLOATS), "mxfp4": (mxfp4, FLOATS), "gptq": (gptq, FLOATS),
    "to blocks": (floats, {"quantize": {"target": "w", "to": "float8_e4m3fn", "block": [128, 128]}}),
    "to one scale": (floats, {"quantize": {"target": "w", "to": "int8", "per": "tensor"}}),
    "to mxfp4": (floats, {"quantize": {"target": "w", "to": "mxfp4"}}),
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_rows_go_by_within_what_is_projected(job: str, tmp_path: Path) -> None:
    make, step = JOBS[job]
    plans = plan_of(tmp_path, make(ROWS, COLUMNS), step), plan_of(tmp_path, make(64, 64), step)
    check(plans)
    shorter = plan_of(tmp_path, make(ROWS // 2, COLUMNS), step)
    assert bs.load(plans[0]).explain().peak_in_all < 1.1 * bs.load(shorter).explain().peak_in_all


def test_rows_that_fill_no_block_go_by_as_well(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, scaled(ROWS + 100, 1000), FLOATS)
    bs.load(plan).run(durable=False)
    made = np.asarray(bs.open(plan["output"]["path"])["w"]).astype(np.float32)
    assert (made == scaled(ROWS + 100, 1000)["w"].astype(np.float32)).all()
