"""Quantized weights: one formula for each format, from stored codes to floats and back.

The functions are pure and shape-polymorphic: they run on numpy arrays as under `jit`, `vmap` and `grad`, on whole
tensors as on parts of them (rows of codes with the rows of their scales). Products are computed in float32 and rounded
once to the dtype that is asked for. Shapes are in brackets; `...` are leading axes, such as one of experts.

| format | stored | value |
|---|---|---|
| scaled (fp8, int8) | codes [..., m, n], scales [..., a, b] | code * scale of its block |
| MXFP4 (OCP MX 1.0, gpt-oss) | bytes [..., g, 16], exponents [..., g] | e2m1 code * 2 ** (exponent - 127) |
| GPTQ | words [in / 8, out], zeros [groups, out / 8], scales [groups, out], groups [in] | (code - zero) * scale |
| AWQ | words [in, out / 8], zeros [groups, out / 8], scales [groups, out] | (code - zero) * scale |
| bitsandbytes int8 | codes [out, in], row maxima [out] | code * maximum / 127 |
| bitsandbytes nf4, fp4 | bytes [n / 2, 1], maxima [n / blocksize], table [16] | table[code] * maximum |

Sources: DeepSeek-V3 (block-scaled fp8), https://github.com/deepseek-ai/DeepSeek-V3; OCP Microscaling Formats (MX) v1.0,
2023; Frantar et al., GPTQ, 2022, https://arxiv.org/abs/2210.17323; Lin et al., AWQ, 2023,
https://arxiv.org/abs/2306.00978; Dettmers et al., LLM.int8(), 2022, https://arxiv.org/abs/2208.07339, and QLoRA, 2023,
https://arxiv.org/abs/2305.14314.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brainsurgery_jax._lazy import Array, Flag, jnp, np
from brainsurgery_jax.dtypes import DType, to_numpy
from brainsurgery_jax.numerics.math import kind, on_host, quotient, seal, widen
from brainsurgery_jax.numerics.rounding import cast_to, round_to

Block = tuple[int, int]
"""Rows and columns that share a scale."""


def _xp(x: Array) -> Any:
    return np if on_host(x) else jnp


def _single(x: Array) -> Array:
    """A tensor of any numbers in float32."""
    wide = widen(x) if kind(x) == "float" else x
    return round_to(wide, np.float32) if kind(wide) == "float" else wide.astype(np.float32)


# --- Codes with scales: fp8 and int8 ----------------------------------------------------------------------------------


def spread_scales(scales: Array, shape: Sequence[int], block: Block) -> Array:
    """Scales [..., a, b] such that they broadcast to a tensor of `shape` [..., m, n]: each repeated over its block. An
    axis with one scale stays as it is."""
    for axis, each in zip((-2, -1), block, strict=True):
        if scales.shape[axis] > 1 and each > 1:
            scales = _xp(scales).repeat(scales, each, axis=axis)
    rows, columns = (n if s > 1 else 1 for n, s in zip(shape[-2:], scales.shape[-2:], strict=True))
    return scales[..., :rows, :columns]


def dequantize_scaled(codes: Array, scales: Array, zeros: Array | None = None, *, block: Block, dtype: DType) -> Array:
    """Codes [..., m, n] (float8 or integers), less their zeros [..., a, b] (None: 0), times their scales [..., a, b],
    in `dtype`."""
    factors = spread_scales(_single(scales), codes.shape, block)
    own = _single(codes)
    own = own if zeros is None else own - spread_scales(_single(zeros), codes.shape, block)
    return round_to(own * factors, to_numpy(dtype))


def largest_code(dtype: DType) -> float:
    """The largest code that quantization makes: of integers the one whose negative there is as well."""
    if dtype.is_integer:
        return float(np.iinfo(to_numpy(dtype)).max)
    import ml_dtypes

    return float(ml_dtypes.finfo(to_numpy(dtype)).max)


def choose_scales(x: Array, *, block: Block, dtype: DType) -> Array:
    """For each block of a tensor [..., m, n] the scale [..., a, b] by which its largest entry becomes the largest code
    of `dtype`, in float32; of a block of zeros 1. A size of 0 in `block` takes all of that axis."""
    largest = _single(_block_maxima(abs(x) if kind(x) != "float" else abs(_single(x)), block))
    xp = _xp(largest)
    zero = largest == 0
    top = np.full((), largest_code(dtype), np.float32)
    return xp.where(zero, np.float32(1), quotient(xp.where(zero, top, largest), xp.broadcast_to(top, largest.shape)))


def _block_maxima(sizes: Array, block: Block) -> Array:
    """The largest entry of each block of a tensor [..., m, n] without negative entries [..., a, b]."""
    xp = _xp(sizes)
    for axis, each in zip((-2, -1), block, strict=True):
        n = sizes.shape[axis]
        each = each or n
        count = -(-n // each)
        if count * each != n:
            margins = [(0, 0)] * len(sizes.shape)
            margins[axis] = (0, count * each - n)
            sizes = xp.pad(sizes, margins)
        at = len(sizes.shape) + axis
        cut = (*sizes.shape[:at], count, each, *sizes.shape[at + 1 :])
        sizes = sizes.reshape(cut).max(axis=at + 1)
    return sizes


def quantize_scaled(x: Array, scales: Array, *, block: Block, dtype: DType) -> Array:
    """The codes of a tensor [..., m, n] by its scales [..., a, b]: `x / scale`, to the nearest code, ties to even."""
    shares = quotient(_single(x), _xp(x).broadcast_to(spread_scales(_single(scales), x.shape, block), x.shape))
    if dtype.is_integer:
        top = np.float32(largest_code(dtype))
        xp = _xp(shares)
        shares = xp.clip(xp.round(shares), -top, top)
    return cast_to(shares, dtype, "saturate")[0]


# --- MXFP4 ------------------------------------------------------------------------------------------------------------

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of e2m1 by their codes; the highest of four bits is the sign."""
MX_GROUP = 32
"""Elements that share an exponent."""
_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def _fp4_pairs() -> np.ndarray:
    """The two values of each byte [256, 2], that of its lower half first."""
    values = np.asarray([*FP4, *(-v for v in FP4)], np.float32)
    codes = np.arange(256)
    return np.stack([values[codes & 15], values[codes >> 4]], -1)


def _powers() -> np.ndarray:
    """The value of each byte read as an exponent without sign or fraction (e8m0): 255 is NaN."""
    with np.errstate(over="ignore"):
        made = np.ldexp(np.float32(1), np.arange(256) - 127).astype(np.float32)
    made[255] = np.nan
    return made


def _look_up(table: np.ndarray, at: Array) -> Array:
    """The entries of a table at places that are in it."""
    return table[at] if on_host(at) else jnp.take(jnp.asarray(table), at.astype(jnp.int32), axis=0)


def dequantize_mxfp4(blocks: Array, exponents: Array, *, dtype: DType) -> Array:
    """Bytes [..., g, 16] of two codes, the lower half first, with the exponents [..., g] of 32 values each: values
    [..., 32 g] in `dtype`."""
    values = _look_up(_fp4_pairs(), blocks).reshape(*blocks.shape[:-1], MX_GROUP)
    made = values * _look_up(_powers(), exponents)[..., None]
    return round_to(made.reshape(*blocks.shape[:-2], -1), to_numpy(dtype))


def choose_exponents(x: Array) -> Array:
    """The exponents [..., g] of a tensor [..., 32 g], as bytes: that of the largest entry of each group, less that of
    the largest code (MX 1.0, section 6.3); of a group of zeros 127, which is 1."""
    largest = abs(_single(x)).reshape(*x.shape[:-1], -1, MX_GROUP).max(axis=-1)
    xp = _xp(largest)
    _, exponent = xp.frexp(largest)
    return xp.where(largest == 0, 127, xp.clip(exponent - 1 - 2 + 127, 1, 254)).astype(np.uint8)


def quantize_mxfp4(x: Array, exponents: Array) -> Array:
    """The bytes [..., g, 16] of a tensor [..., 32 g] by its exponents [..., g]: to the nearest code, ties to even."""
    xp = _xp(x)
    powers = xp.repeat(_look_up(_powers(), exponents), MX_GROUP, axis=-1)
    shares = quotient(_single(x), powers)
    sizes = abs(shares)
    code = xp.zeros(sizes.shape, np.uint8)
    for number, edge in enumerate(_MIDPOINTS):  # an edge goes to the even one of its neighbours
        code = code + ((sizes >= edge) if number % 2 else (sizes > edge)).astype(np.uint8)
    code = code + (shares < 0).astype(np.uint8) * np.uint8(8)
    pairs = code.reshape(*x.shape[:-1], -1, MX_GROUP // 2, 2)
    return pairs[..., 0] | (pairs[..., 1] << np.uint8(4))


# --- Codes packed into words: GPTQ and AWQ ----------------------------------------------------------------------------

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns each four bits of a word hold, from the lowest bits on."""


def unpack_words(words: Array, bits: int, axis: int, order: Sequence[int] = ()) -> Array:
    """The codes, as int32, of 32-bit words that hold `32 / bits` each along an axis, from the lowest bits on; `order`:
    which of so many entries each is."""
    count = 32 // bits
    places = order or range(count)
    shifts = [bits * list(places).index(n) for n in range(count)]
    axis = axis % len(words.shape)
    parts = [(words >> np.int32(shift)) & np.int32((1 << bits) - 1) for shift in shifts]
    made = _xp(words).stack(parts, axis + 1)
    return made.reshape(*words.shape[:axis], words.shape[axis] * count, *words.shape[axis + 1 :])


def pack_words(codes: Array, bits: int, axis: int, order: Sequence[int] = ()) -> Array:
    """Codes below `2 ** bits` packed into int32 words along an axis whose length a word divides; `order` as above."""
    count, axis = 32 // bits, axis % len(codes.shape)
    shape = codes.shape
    parts = codes.astype(np.uint32).reshape(*shape[:axis], shape[axis] // count, count, *shape[axis + 1 :])
    xp = _xp(codes)
    words = None
    for n in range(count):
        part = xp.take(parts, (order or range(count))[n], axis=axis + 1) << np.uint32(bits * n)
        words = part if words is None else words | part
    assert words is not None
    return words.view(np.int32)


def dequantize_gptq(
    qweight: Array, qzeros: Array, scales: Array, g_idx: Array | None = None, *, bits: int, zero_offset: int,
    dtype: DType,
) -> Array:  # fmt: skip
    """The matrix [out, in] of words [in * bits / 32, out], zeros [groups, out * bits / 32], scales [groups, out] and
    the group of each input [in] (None: groups of equal size, in order), in `dtype`.

    `zero_offset`: what is added to stored zeros. Files of the format `gptq` store them less one (so 1, and the zero 0
    is stored with all bits set: sums wrap); files of `gptq_v2` as they are (0).
    """
    codes = unpack_words(qweight, bits, 0)  # [in, out]
    zeros = (unpack_words(qzeros, bits, 1) + np.int32(zero_offset)) & np.int32((1 << bits) - 1)
    return _group(codes, zeros, scales, g_idx, dtype)


def dequantize_awq(qweight: Array, qzeros: Array, scales: Array, *, bits: int, dtype: DType) -> Array:
    """The matrix [out, in] of words [in, out * bits / 32], zeros [groups, out * bits / 32] and scales [groups, out], in
    `dtype`. Words hold eight columns in the order of `AWQ_ORDER`; zeros are stored as they are."""
    codes, zeros = (unpack_words(words, bits, 1, AWQ_ORDER) for words in (qweight, qzeros))
    return _group(codes, zeros, scales, None, dtype)


def dequantize_packed_rows(
    words: Array, scales: Array, zeros: Array | None, g_idx: Array | None, *, bits: int, columns: int, dtype: DType
) -> Array:
    """The matrix [out, columns] of words [out, columns * bits / 32], the last of which may be filled up; scales
    [out, groups]; zeros, packed along the outputs (None: the middle of the codes); and the group of each input (None:
    groups of equal size, in order). As compressed-tensors packs (`pack-quantized`)."""
    xp, (rows, groups) = _xp(words), scales.shape
    codes = unpack_words(words, bits, 1)[:, :columns]
    factors = _single(scales)
    own = np.arange(columns, dtype=np.int32) // np.int32(max(1, columns // groups)) if g_idx is None else g_idx
    own = own if on_host(own) else own.astype(np.int32)
    middle = np.int32(1 << (bits - 1))
    centre = middle if zeros is None else xp.take(unpack_words(zeros, bits, 0)[:rows], own, axis=1)
    return round_to((codes - centre).astype(np.float32) * xp.take(factors, own, axis=1), to_numpy(dtype))


def _group(codes: Array, zeros: Array, scales: Array, g_idx: Array | None, dtype: DType) -> Array:
    """`(code - zero) * scale`, transposed: codes [in, out], zeros and scales [groups, out]."""
    factors = _single(scales)
    if g_idx is None:
        inputs, groups = codes.shape[0], scales.shape[0]
        stacked = codes.reshape(groups, inputs // groups, -1)
        made = (stacked - zeros[:, None]).astype(np.float32) * factors[:, None]
        made = made.reshape(inputs, -1)
    else:
        xp = _xp(codes)
        own = g_idx if on_host(g_idx) else g_idx.astype(np.int32)
        made = (codes - xp.take(zeros, own, axis=0)).astype(np.float32) * xp.take(factors, own, axis=0)
    return round_to(made.T, to_numpy(dtype))


INT4 = 15
"""The largest code of four bits without a sign."""


def _ends(x: Array, group: int) -> tuple[Array, Array]:
    """The least and the largest entry of each group of inputs of a matrix [out, in], zero among them: [groups, out]."""
    stacked = _single(x).reshape(x.shape[0], x.shape[1] // group, group)
    xp, zero = _xp(x), np.float32(0)
    return xp.minimum(stacked.min(axis=2), zero).T, xp.maximum(stacked.max(axis=2), zero).T


NEGLIGIBLE = 2.0**-10
"""The range of a group beside the largest below which its codes may be lost."""


def choose_group_scales(x: Array, *, group: int, dtype: DType) -> tuple[Array, Flag]:
    """The scales [groups, out] of a matrix [out, in] in `dtype`, such that the range of each group has 16 codes, 1
    where that is nothing; and whether their dtype holds them: none is infinite, or so small that its rounding moves
    the largest code by more than half a step, but for groups that are negligible beside others."""
    low, high = _ends(x, group)
    xp = _xp(x)
    exact = quotient(high - low, xp.full(low.shape, np.float32(INT4)))
    scales = round_to(exact, to_numpy(dtype))
    # Both are raised: what float32 holds below its normal numbers is zero on some devices.
    raised = exact * np.float32(2.0**24)
    held = abs(_single(scales) * np.float32(2.0**24) - raised) * np.float32(2 * INT4) <= raised
    held |= raised <= raised.max() * np.float32(NEGLIGIBLE)  # beside others, as those of dead channels are
    return xp.where(scales == 0, xp.ones_like(scales), scales), held.all()


def choose_group_zeros(x: Array, scales: Array, *, group: int) -> Array:
    """The code [groups, out] of zero in each group, from 0 to 15, as int32."""
    low, _ = _ends(x, group)
    xp = _xp(x)
    return xp.clip(xp.round(quotient(-low, _single(scales))), 0, INT4).astype(np.int32)


def quantize_groups(x: Array, scales: Array, *, group: int) -> Array:
    """The codes [in, out] of a matrix [out, in], to the nearest, ties to even: `x / scale + zero`, from 0 to 15."""
    xp, (outputs, inputs) = _xp(x), x.shape
    stacked = _single(x).T.reshape(inputs // group, group, outputs)
    shares = quotient(stacked, xp.broadcast_to(_single(scales)[:, None], stacked.shape))
    zeros = choose_group_zeros(x, scales, group=group)[:, None].astype(np.float32)
    return xp.clip(xp.round(shares) + zeros, 0, INT4).astype(np.int32).reshape(inputs, outputs)


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


def dequantize_rows(codes: Array, maxima: Array, *, dtype: DType) -> Array:
    """int8 codes [out, in] times the largest magnitude of each row [out] (`SCB`) over 127, in `dtype`."""
    return round_to(_single(codes) * quotient(_single(maxima), np.full((), 127, np.float32))[:, None], to_numpy(dtype))


def dequantize_maxima(codes: Array, table: Array, maxima: Array, offset: Array | float, blocksize: int) -> Array:
    """Block maxima [n] that are themselves quantized: codes [n] of a table [256], scaled by the maxima [n / blocksize]
    of so many, plus an offset; in float32."""
    factors = _xp(codes).repeat(_single(maxima), blocksize)[: codes.shape[0]]
    own = codes if on_host(codes) else codes.astype(np.int32)
    product = _xp(codes).take(_single(table), own, axis=0) * factors
    return (product if on_host(product) else seal(product)) + (
        np.float32(offset) if isinstance(offset, float) else offset
    )


def dequantize_table(packed: Array, maxima: Array, table: Array, *, blocksize: int, dtype: DType) -> Array:
    """Bytes [n / 2] of two codes, the upper half first, looked up in a table [16] (nf4, fp4) and scaled by the largest
    magnitude of each block [n / blocksize]: values [n] in `dtype`."""
    xp, flat = _xp(packed), packed.reshape(-1)
    codes = xp.stack([flat >> np.uint8(4), flat & np.uint8(15)], -1).reshape(-1)
    values = xp.take(_single(table), codes if on_host(codes) else codes.astype(np.int32), axis=0)
    factors = xp.repeat(_single(maxima), blocksize)[: values.shape[0]]
    return round_to(values * factors, to_numpy(dtype))
