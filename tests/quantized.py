"""A small quantized weight in each format, and the floats that it stands for, counted by hand."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from tests.checkpoints import Tensors


class Quantized(NamedTuple):
    """The tensors of a checkpoint, the first of which is the codes, and the name of the floats and their value."""

    tensors: Tensors
    name: str
    floats: np.ndarray

    @property
    def parts(self) -> list[str]:
        """What lies beside the codes."""
        return list(self.tensors)[1:]


def _word(digit: int) -> int:
    """Eight codes of four bits, all alike, as one int32."""
    return int(np.uint32(0x11111111 * digit).view(np.int32))


_CODES = np.array([[1, 2], [4, 8]])
_ROWS = np.array([[2], [4]], np.float32)
_SCALED = np.array([[2, 4], [16, 32]], np.float32)
_STATE = b'{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 8]}'
_HALVES = np.full((8, 8), 0.5, np.float32)

FORMATS = {
    "fp8": Quantized(
        {"w": _CODES.astype(ml_dtypes.float8_e4m3fn), "w_scale_inv": _ROWS}, "w", _SCALED),
    "int8": Quantized(
        {"l.weight": _CODES.astype(np.int8), "l.weight_scale": _ROWS,
         "l.weight_zero_point": np.zeros((2, 1), np.int8)}, "l.weight", _SCALED),
    "mxfp4": Quantized(
        {"w_blocks": np.full((2, 1, 16), 0x22, np.uint8), "w_scales": np.array([[127], [128]], np.uint8)}, "w",
        np.repeat(np.array([[1], [2]], np.float32), 32, 1)),
    "gptq": Quantized(
        {"l.qweight": np.full((1, 8), _word(9), np.int32), "l.qzeros": np.full((1, 1), _word(7), np.int32),
         "l.scales": np.full((1, 8), 0.5, np.float16), "l.g_idx": np.zeros(8, np.int32)}, "l.weight", _HALVES),
    "awq": Quantized(
        {"l.qweight": np.full((8, 1), _word(9), np.int32), "l.qzeros": np.full((1, 1), _word(8), np.int32),
         "l.scales": np.full((1, 8), 0.5, np.float16)}, "l.weight", _HALVES),
    "compressed-tensors": Quantized(
        {"l.weight_packed": np.full((8, 1), _word(9), np.int32), "l.weight_scale": np.full((8, 1), 0.5, np.float32),
         "l.weight_shape": np.array([8, 8])}, "l.weight", _HALVES),
    "bitsandbytes int8": Quantized(
        {"l.weight": np.full((2, 2), 127, np.int8), "l.SCB": np.array([0.5, 2], np.float32)}, "l.weight",
        np.array([[0.5, 0.5], [2, 2]], np.float32)),
    "bitsandbytes nf4": Quantized(
        {"l.weight": np.full((32, 1), 255, np.uint8), "l.weight.absmax": np.array([0.5], np.float32),
         "l.weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
         "l.weight.quant_state.bitsandbytes__nf4": np.frombuffer(_STATE, np.uint8)}, "l.weight", _HALVES),
}  # fmt: skip
