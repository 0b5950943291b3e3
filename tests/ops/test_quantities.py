"""The formulas of quantized weights, against torch, ml_dtypes and loops that pack codes one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from brainsurgery_jax.dtypes import BY_NAME
from brainsurgery_jax.numerics import quantities as q
from tests.checkpoints import normal

RNG = np.random.default_rng(5)
F32, BF16, F16 = BY_NAME["float32"], BY_NAME["bfloat16"], BY_NAME["float16"]
FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def as_torch(x: np.ndarray) -> torch.Tensor:
    """An array of a dtype of ml_dtypes as torch's."""
    own = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "bfloat16": torch.bfloat16}
    if x.dtype.name in own:
        return torch.from_numpy(x.view(f"u{x.itemsize}").copy()).view(own[x.dtype.name])
    return torch.from_numpy(x.copy())


def in_every_way(fn: Callable[..., Any], *xs: Any) -> np.ndarray:
    """What a formula gives on numpy arrays, which must be the bits that it gives under `jit` and `vmap`."""
    plain = np.asarray(fn(*xs))
    traced = np.asarray(jax.jit(fn)(*xs))
    stacked = np.asarray(jax.vmap(fn)(*(np.stack([x, x]) for x in xs)))
    with jax.enable_x64(True):
        wide = np.asarray(jax.jit(fn)(*xs))
    for other in (traced, stacked[0], stacked[1], wide):
        assert (other.dtype, other.shape, other.tobytes()) == (plain.dtype, plain.shape, plain.tobytes())
    return plain


# --- fp8 and int8 -----------------------------------------------------------------------------------------------------

BLOCKS = {"tensor": (1, 1), "row": (1, 1), "block": (128, 128), "narrow": (4, 2)}


def scales_of(shape: tuple[int, int], block: str) -> np.ndarray:
    m, n = shape
    size = {"tensor": (1, 1), "row": (m, 1), "block": (-(-m // 128), -(-n // 128)), "narrow": (-(-m // 4), -(-n // 2))}
    return np.abs(normal(size[block])).astype(np.float32) + np.float32(0.1)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(256, 128), (200, 130), (3, 5)])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8"])
def test_codes_are_scaled_as_torch_does(dtype: str, shape: tuple[int, int], block: str) -> None:
    codes = np.clip(normal(shape) * 40, -120, 120).astype(getattr(ml_dtypes, dtype, np.int8))
    scales, each = scales_of(shape, block), BLOCKS[block]
    found = in_every_way(lambda c, s: q.dequantize_scaled(c, s, block=each, dtype=BF16), codes, scales)
    spread = torch.from_numpy(scales)
    if min(each) > 1:
        spread = spread.repeat_interleave(each[0], 0).repeat_interleave(each[1], 1)[: shape[0], : shape[1]]
    wanted = (as_torch(codes).float() * spread).to(torch.bfloat16)
    assert found.view(np.int16).tolist() == wanted.view(torch.int16).numpy().tolist()


def test_scales_that_are_bare_exponents_are_read() -> None:
    codes = normal((4, 6)).astype(ml_dtypes.float8_e4m3fn)
    scales = np.array([[0.25], [1], [2], [8]]).astype(ml_dtypes.float8_e8m0fnu)
    found = in_every_way(lambda c, s: q.dequantize_scaled(c, s, block=(1, 1), dtype=F32), codes, scales)
    assert found.tolist() == (codes.astype(np.float32) * scales.astype(np.float32)).tolist()


@pytest.mark.parametrize("block", [(0, 0), (1, 0), (128, 128), (4, 2)])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_codes_are_those_of_torch(dtype: str, block: tuple[int, int]) -> None:
    x, made = normal((200, 130)), BY_NAME[dtype]
    x[:4, :2] = 0
    scales = in_every_way(lambda x: q.choose_scales(x, block=block, dtype=made), x)
    each = (block[0] or x.shape[0], block[1] or x.shape[1])
    padded = np.pad(x, [(0, -size % n) for size, n in zip(x.shape, each, strict=True)])
    cut = padded.reshape(padded.shape[0] // each[0], each[0], padded.shape[1] // each[1], each[1])
    largest = torch.from_numpy(np.abs(cut).max((1, 3)))
    wanted = torch.where(largest == 0, 1.0, largest / torch.finfo(FP8[dtype]).max)
    assert scales.tolist() == wanted.numpy().tolist()
    found = in_every_way(lambda x, s: q.quantize_scaled(x, s, block=each, dtype=made), x, scales)
    spread = wanted.repeat_interleave(each[0], 0).repeat_interleave(each[1], 1)[:200, :130]
    codes = (torch.from_numpy(x) / spread).clamp(-torch.finfo(FP8[dtype]).max, torch.finfo(FP8[dtype]).max)
    assert found.view(np.uint8).tolist() == codes.to(FP8[dtype]).view(torch.uint8).numpy().tolist()


@pytest.mark.parametrize("block", [(0, 0), (1, 0)])
def test_int8_codes_are_symmetric_and_within_half_a_step(block: tuple[int, int]) -> None:
    x, int8 = normal((6, 40)), BY_NAME["int8"]
    scales = in_every_way(lambda x: q.choose_scales(x, block=block, dtype=int8), x)
    each = (block[0] or x.shape[0], block[1] or x.shape[1])
    found = in_every_way(lambda x, s: q.quantize_scaled(x, s, block=each, dtype=int8), x, scales)
    wanted = torch.round(torch.from_numpy(x) / torch.from_numpy(scales)).clamp(-127, 127).to(torch.int8)
    assert found.tolist() == wanted.numpy().tolist()
    assert np.abs(found).max() == 127
    assert (np.abs(found * scales - x) <= scales * 0.5001).all()


def test_a_stack_of_experts_has_the_scales_of_each() -> None:
    x = normal((3, 8, 6))
    fp8 = BY_NAME["float8_e4m3fn"]
    scales = q.choose_scales(x, block=(4, 2), dtype=fp8)
    codes = in_every_way(lambda x, s: q.quantize_scaled(x, s, block=(4, 2), dtype=fp8), x, scales)
    made = in_every_way(lambda c, s: q.dequantize_scaled(c, s, block=(4, 2), dtype=F32), codes, scales)
    for e in range(3):
        own = q.quantize_scaled(x[e], scales[e], block=(4, 2), dtype=fp8)
        assert own.tobytes() == codes[e].tobytes()
        assert q.dequantize_scaled(own, scales[e], block=(4, 2), dtype=F32).tolist() == made[e].tolist()


# --- MXFP4 ------------------------------------------------------------------------------------------------------------


def test_mxfp4_is_read_as_its_types_say() -> None:
    blocks = RNG.integers(0, 256, (3, 5, 2, 16), dtype=np.uint8)
    exponents = RNG.integers(100, 150, (3, 5, 2), dtype=np.uint8)
    found = in_every_way(lambda b, e: q.dequantize_mxfp4(b, e, dtype=BF16), blocks, exponents)
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(3, 5, 2, 32)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    powers = exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    wanted = (values * powers[..., None]).reshape(3, 5, 64).astype(ml_dtypes.bfloat16)
    assert found.tobytes() == wanted.tobytes()


def test_mxfp4_codes_are_those_of_ml_dtypes() -> None:
    x = normal((4, 96)) * np.exp2(RNG.integers(-20, 20, (4, 1))).astype(np.float32)
    x[0, :32] = 0
    x[1, :9] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -2.5]  # every edge
    x[1, 9:32] = 0
    exponents = in_every_way(q.choose_exponents, x)
    blocks = in_every_way(q.quantize_mxfp4, x, exponents)
    groups = x.reshape(4, 3, 32)
    largest = np.abs(groups).max(-1)
    powers = np.floor(np.log2(np.where(largest == 0, 4, largest)))
    wanted = np.clip(powers - 2 + 127, 1, 254).astype(np.uint8)
    assert exponents.tolist() == wanted.tolist()
    shares = groups / np.exp2(wanted.astype(np.float32) - 127)[..., None]
    codes = np.clip(shares, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    codes = np.where(shares == 0, 0, codes)
    assert np.stack([blocks & 15, blocks >> 4], -1).reshape(4, 3, 32).tolist() == codes.tolist()
    again = q.choose_exponents(q.dequantize_mxfp4(blocks, exponents, dtype=F32))
    assert (again[exponents > 1] == exponents[exponents > 1]).all()


# --- GPTQ and AWQ -----------------------------------------------------------------------------------------------------


def pack(codes: np.ndarray, bits: int, order: tuple[int, ...] = ()) -> np.ndarray:
    """Rows of codes packed into words, one by one."""
    count = 32 // bits
    order = order or tuple(range(count))
    made = np.zeros((codes.shape[0], codes.shape[1] // count), np.uint32)
    for row in range(codes.shape[0]):
        for word in range(made.shape[1]):
            for place, column in enumerate(order):
                made[row, word] |= np.uint32(int(codes[row, word * count + column]) << bits * place)
    return made.view(np.int32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("zero_offset", [0, 1])
def test_gptq_is_unpacked_with_its_zeros_and_its_order(bits: int, ordered: bool, zero_offset: int) -> None:
    inputs, outputs, groups = 64, 32, 4
    codes, zeros = RNG.integers(0, 1 << bits, (inputs, outputs)), RNG.integers(0, 1 << bits, (groups, outputs))
    zeros[0, 0] = 0  # which files of version 1 store with all bits set
    scales = (np.abs(normal((groups, outputs))) + 0.01).astype(np.float16)
    owners = RNG.integers(0, groups, inputs).astype(np.int32) if ordered else np.arange(inputs) // (inputs // groups)
    qweight = pack(codes.T, bits).T.copy()
    qzeros = pack((zeros - zero_offset) % (1 << bits), bits)
    g_idx = (owners.astype(np.int32),) if ordered else ()
    found = in_every_way(
        lambda *xs: q.dequantize_gptq(*xs, bits=bits, zero_offset=zero_offset, dtype=F16), qweight, qzeros, scales,
        *g_idx,
    )  # fmt: skip
    wanted = (torch.from_numpy(codes - zeros[owners]).float() * torch.from_numpy(scales)[owners].float()).half().T
    assert found.shape == (outputs, inputs)
    assert found.tolist() == wanted.numpy().tolist()
    assert np.array_equal(np.asarray(q.pack_words(codes, bits, 0)), qweight)


def test_awq_is_unpacked_in_its_order() -> None:
    inputs, outputs, groups = 16, 24, 2
    codes, zeros = RNG.integers(0, 16, (inputs, outputs)), RNG.integers(0, 16, (groups, outputs))
    scales = (np.abs(normal((groups, outputs))) + 0.01).astype(np.float16)
    words = (pack(codes, 4, (0, 2, 4, 6, 1, 3, 5, 7)), pack(zeros, 4, (0, 2, 4, 6, 1, 3, 5, 7)))
    found = in_every_way(lambda *xs: q.dequantize_awq(*xs, bits=4, dtype=F16), *words, scales)
    owners = np.arange(inputs) // (inputs // groups)
    wanted = ((codes - zeros[owners]).astype(np.float32) * scales[owners].astype(np.float32)).astype(np.float16)
    assert found.tolist() == wanted.T.tolist()


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


def test_int8_rows_are_scaled_by_their_maxima() -> None:
    x = normal((5, 12))
    maxima = np.abs(x).max(1)
    codes = np.round(x / maxima[:, None] * 127).astype(np.int8)
    found = in_every_way(lambda c, m: q.dequantize_rows(c, m, dtype=F32), codes, maxima)
    assert np.abs(found - x).max() <= maxima.max() / 254 * 1.001


def test_nf4_with_nested_maxima_is_unpacked() -> None:
    table, inner = np.linspace(-1, 1, 16).astype(np.float32), normal((256,))
    packed = RNG.integers(0, 256, (64 * 256, 1), dtype=np.uint8)
    codes = RNG.integers(0, 256, 512, dtype=np.uint8)
    maxima = np.abs(normal((2,)))
    made = in_every_way(lambda c, t, m: q.dequantize_maxima(c, t, m, 0.25, 256), codes, inner, maxima)
    assert np.allclose(made, inner[codes] * np.repeat(maxima, 256) + 0.25, rtol=1e-6)
    found = in_every_way(lambda p, m, t: q.dequantize_table(p, m, t, blocksize=64, dtype=BF16), packed, made, table)
    order = np.stack([packed >> 4, packed & 15], -1).reshape(-1, 64)
    assert found.tobytes() == (table[order] * made[:, None]).astype(ml_dtypes.bfloat16).tobytes()
