"""The kernels of quantized weights: the formulas of `numerics.quantities`, in rows that take little memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypedDict

from brainsurgery_jax._lazy import Array, Flag, jnp, np
from brainsurgery_jax.codes import USUAL_BLOCK, Block, Grid, find_grid, fitting_blocks, rival_block
from brainsurgery_jax.dtypes import FLOAT32, INT64, UINT8, Aval, DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.parts import AxisCut, Cuts
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.numerics import quantities
from brainsurgery_jax.numerics.math import on_host, widen
from brainsurgery_jax.op import Avals, Params, kernel

PART = 1 << 20
"""Elements of a part."""

ON_THE_WAY = 32
"""Bytes that a part takes for each of its elements, besides operands and result."""


class CodeParams(TypedDict):
    """How codes and floats are made: in which dtype, and how much shares a scale."""

    dtype: DType
    block: Block


class FloatParams(TypedDict):
    """The dtype of floats."""

    dtype: DType


class PackedParams(FloatParams):
    """The same, and the bits of a code in a word."""

    bits: int


def scale_block(x: Aval, scales: Aval, given: Block | None, usual: Block = USUAL_BLOCK) -> tuple[Grid, Block]:
    """The shape of scales as [..., a, b] beside a tensor [..., m, n], and how many rows and columns share one: as
    given, else the usual, if shapes allow that. Raises Refusal, also where shapes allow several sizes."""
    if not scales.dtype.is_float:
        hint = "Scales are floats. Narrow the pattern, so that it leaves such tensors out."
        raise Refusal("codes-unknown", f"{x} stands beside scales that are {scales}", key="target", hint=hint)
    found = find_grid(x.shape, scales.shape, given, usual)
    if found is None:
        blocks = f"blocks of {given[0]} x {given[1]}" if given else "blocks"
        wrong = f"{x} cannot be cut into {blocks} with scales {scales}"
        hint = _block_hint(x, scales, given, usual)
        raise Refusal("codes-unknown", wrong, key="block" if given else "target", hint=hint)
    grid, block = found
    if given is None and (rival := rival_block(x.shape, grid, block, usual)) is not None:
        hint = f"Say how many rows and columns share a scale: `block: {[*rival]}` or `block: {[*block]}`."
        wrong = f"{x} with scales {scales} may have blocks of {block[0]} x {block[1]} or of {rival[0]} x {rival[1]}"
        raise Refusal("codes-unknown", wrong, key="target", hint=hint)
    return found


def _block_hint(x: Aval, scales: Aval, given: Block | None, usual: Block) -> str:
    """What to do about codes that cannot be cut into blocks as given, or as usual."""
    fitting, found = fitting_blocks(x.shape, scales.shape), find_grid(x.shape, scales.shape, None, usual)
    if given is not None and found is not None and all(n in (1, m) for n, m in zip(found[0], x.shape, strict=True)):
        return "Leave out `block`: the shape of these scales says what shares one."
    if fitting is None:
        return (
            "No `block` fits: scales are one, or one for each matrix, row or block. Repeat them to one for each row, "
            "or dequantize before the steps that join codes."
        )
    least, largest = fitting
    more = "" if least == largest else f" Sizes up to {[*largest]} fit as well."
    return f"Say how many rows and columns share a scale: `block: {[*least]}`.{more}"


# --- Parts ------------------------------------------------------------------------------------------------------------


def _by_rows(shape: Sequence[int], units: int, operands: Sequence[Grid]) -> Cuts:
    """Cuts of a result along its leading axes and, into units, along the axis of rows, which is the last but one of
    the first operand; an operand with size 1 there is needed whole. `units` 0: rows are not cut."""
    cuts, rows = list[AxisCut](), len(operands[0]) - 2
    rest = prod(operands[0])
    for axis, size in enumerate(shape[: rows + 1]):
        count = size if axis < rows else units
        if count < 2 or rest <= PART:
            rest //= max(1, size if axis < rows else 1)
            continue
        each = rest // count
        step = max(1, min(count, PART // max(1, each)))
        cuts.append(AxisCut(axis, count, step, tuple(axis if shape[axis] > 1 else None for shape in operands)))
        rest = each
    return tuple(cuts)


def _units(rows: int, grid: int, each: int) -> int:
    """Into how many units rows are cut whose scales are `grid` many: none, if the last one has fewer rows."""
    return rows if grid == 1 else grid if grid * each == rows else 0


def _parts_of_scales(avals: Avals, params: CodeParams) -> Cuts:
    x, scales, *zeros = avals
    units = _units(x.shape[-2], scales.shape[-2], params["block"][0])
    return _by_rows(x.shape, units, (x.shape, scales.shape, *(z.shape for z in zeros)))


def _scales_parts(avals: Avals, params: CodeParams) -> Cuts:
    (x,), (made,) = avals, _grid(avals, params)
    each = params["block"][0]
    units = made.shape[-2] if each and made.shape[-2] * each == x.shape[-2] else 0
    return _by_rows(made.shape, units, (x.shape,))


def _space(avals: Avals, params: Params) -> int:
    return ON_THE_WAY * max(aval.size for aval in avals)


def _space_of_packed(avals: Avals, params: PackedParams) -> int:
    return ON_THE_WAY * avals[0].size * 32 // params["bits"]


def _anywhere(avals: Avals, params: Params) -> bool:
    return True


# --- Floats -----------------------------------------------------------------------------------------------------------


def _floats(avals: Avals, params: FloatParams) -> Avals:
    return (Aval(avals[0].shape, params["dtype"]),)


@kernel("dequantize", result=_floats, host=_anywhere, workspace=_space, parts=_parts_of_scales)
def scaled(codes: Array, scales: Array, zeros: Array | None = None, *, block: Block, dtype: DType) -> Array:
    """Codes [..., m, n], less zeros, times the scales [..., a, b] of their blocks."""
    return quantities.dequantize_scaled(codes, scales, zeros, block=block, dtype=dtype)


def _check_mxfp4(avals: Avals, params: Params) -> None:
    blocks, exponents = avals
    if len(blocks.shape) < 3 or blocks.shape[-1] != 16 or exponents != Aval(blocks.shape[:-1], UINT8):
        wrong = f"{blocks} with exponents {exponents} is no MXFP4: blocks are [..., 16], with a byte for each"
        raise Refusal("codes-unknown", wrong, key="target", hint="Narrow the pattern, so that it leaves it out.")


def _mxfp4_floats(avals: Avals, params: FloatParams) -> Avals:
    *lead, groups, _ = avals[0].shape
    return (Aval((*lead, groups * quantities.MX_GROUP), params["dtype"]),)


def _mxfp4_parts(avals: Avals, params: FloatParams) -> Cuts:
    blocks, exponents = avals
    *lead, groups, _ = blocks.shape
    return _by_rows((*lead, groups * 32), lead[-1], ((*lead, groups * 32), exponents.shape))


def _mxfp4_space(avals: Avals, params: Params) -> int:
    return 2 * ON_THE_WAY * avals[0].size


@kernel("dequantize", check=_check_mxfp4, result=_mxfp4_floats, host=_anywhere, workspace=_mxfp4_space,
        parts=_mxfp4_parts)  # fmt: skip
def mxfp4(blocks: Array, exponents: Array, *, dtype: DType) -> Array:
    """Bytes [..., g, 16] with exponents [..., g] as floats [..., 32 g]."""
    return quantities.dequantize_mxfp4(blocks, exponents, dtype=dtype)


def _check_rows(avals: Avals, params: Params) -> None:
    codes, maxima = avals
    if len(codes.shape) != 2 or maxima.shape != codes.shape[:1] or not maxima.dtype.is_float:
        wrong = f"{codes} with row maxima {maxima} is no int8 matrix of bitsandbytes"
        raise Refusal("codes-unknown", wrong, key="target", hint="Narrow the pattern, so that it leaves it out.")


def _rows_parts(avals: Avals, params: FloatParams) -> Cuts:
    (cut,) = _by_rows(avals[0].shape, avals[0].shape[0], (avals[0].shape,)) or (None,)
    return () if cut is None else (cut._replace(operands=(0, 0)),)


@kernel("dequantize", check=_check_rows, result=_floats, host=_anywhere, workspace=_space, parts=_rows_parts)
def by_row_maxima(codes: Array, maxima: Array, *, dtype: DType) -> Array:
    """int8 codes [out, in] times the largest magnitude of each row over 127."""
    return quantities.dequantize_rows(codes, maxima, dtype=dtype)


def _check_packed(avals: Avals, bits: int, inputs: int) -> None:
    words, zeros, scales, *groups = avals
    outputs = scales.shape[1]
    right = (
        bits in (2, 4, 8) and zeros.dtype == words.dtype and zeros.shape == (scales.shape[0], outputs * bits // 32)
        and outputs * bits % 32 == 0 and scales.dtype.is_float
        and all(g.shape == (inputs,) and g.dtype.is_integer for g in groups)
        and (bool(groups) or inputs % scales.shape[0] == 0)
    )  # fmt: skip
    if not right:
        wrong = f"words {words}, zeros {zeros} and scales {scales} do not belong to one matrix of 2, 4 or 8 bits"
        raise Refusal("codes-unknown", wrong, key="target", hint="Narrow the pattern, so that it leaves it out.")


def _check_gptq(avals: Avals, params: PackedParams) -> None:
    _check_packed(avals, params["bits"], avals[0].shape[0] * 32 // max(1, params["bits"]))


def _check_awq(avals: Avals, params: PackedParams) -> None:
    words, _, scales = avals
    _check_packed(avals, params["bits"], words.shape[0])
    if params["bits"] != 4 or words.shape[1] * 8 != scales.shape[1]:
        raise Refusal("codes-unknown", f"words {words} with scales {scales} are not of 4 bits, as AWQ's are",
                      key="target", hint="Narrow the pattern, so that it leaves it out.")  # fmt: skip


def _gptq_floats(avals: Avals, params: PackedParams) -> Avals:
    return (Aval((avals[2].shape[1], avals[0].shape[0] * 32 // params["bits"]), params["dtype"]),)


def _awq_floats(avals: Avals, params: PackedParams) -> Avals:
    return (Aval((avals[2].shape[1], avals[0].shape[0]), params["dtype"]),)


def _outputs(avals: Avals, made: Aval) -> Cuts:
    """Cuts along outputs, in words of zeros."""
    units, (outputs, inputs) = avals[1].shape[1], made.shape
    step = max(1, PART // max(1, outputs // max(1, units) * inputs))
    columns = (1, 1, 1, None)[: len(avals)]
    return (AxisCut(0, units, step, columns),) if step < units else ()


@kernel("dequantize", check=_check_gptq, result=_gptq_floats, host=_anywhere, workspace=_space_of_packed,
        parts=lambda avals, params: _outputs(avals, _gptq_floats(avals, params)[0]))  # fmt: skip
def gptq(
    qweight: Array, qzeros: Array, scales: Array, g_idx: Array | None = None, *, bits: int, zero_offset: int,
    dtype: DType,
) -> Array:  # fmt: skip
    """Words [in * bits / 32, out] as floats [out, in]."""
    return quantities.dequantize_gptq(qweight, qzeros, scales, g_idx, bits=bits, zero_offset=zero_offset, dtype=dtype)


@kernel("dequantize", check=_check_awq, result=_awq_floats, host=_anywhere, workspace=_space_of_packed,
        parts=lambda avals, params: _outputs(avals, _awq_floats(avals, params)[0]))  # fmt: skip
def awq(qweight: Array, qzeros: Array, scales: Array, *, bits: int, dtype: DType) -> Array:
    """Words [in, out / 8] as floats [out, in]."""
    return quantities.dequantize_awq(qweight, qzeros, scales, bits=bits, dtype=dtype)


# --- bitsandbytes' four bits ------------------------------------------------------------------------------------------


class TableParams(FloatParams):
    """How values that are looked up are arranged."""

    rows: int
    columns: int
    blocksize: int


def _read_state(state: Array) -> dict[str, object]:
    """What bitsandbytes writes of a weight, as JSON in a tensor of bytes."""
    try:
        found = parse_json(np.asarray(state).tobytes())
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


@kernel("quant_state", result=lambda avals, params: (Aval((), INT64),), host=_anywhere, guarded=True,
        refusal="a `quant_state` does not hold the JSON of bitsandbytes")  # fmt: skip
def state_number(state: Array, *, key: str, at: int = 0) -> tuple[Array, Flag]:
    """A whole number of a state; of a shape the number of rows, or with another `at` that of all elements."""
    found = _read_state(state).get(key)
    if isinstance(found, list):
        own = found[:1] if at == 0 else found
        found = prod(own) if own and all(isinstance(size, int) for size in own) else None
    return np.asarray(found if isinstance(found, int) else 1, np.int64), np.bool_(isinstance(found, int))


@kernel("quant_state", result=lambda avals, params: (Aval((), FLOAT32),), host=_anywhere)
def state_offset(state: Array) -> Array:
    """What is added to block maxima that are quantized themselves."""
    found = _read_state(state).get("nested_offset")
    return np.asarray(found if isinstance(found, int | float) else 0, np.float32)


@kernel("dequantize", result=lambda avals, params: (Aval(avals[0].shape, FLOAT32),), host=_anywhere)
def nested_maxima(codes: Array, table: Array, maxima: Array, offset: Array, *, blocksize: int) -> Array:
    """Block maxima that are quantized themselves, as floats."""
    return quantities.dequantize_maxima(codes, table, maxima, offset, blocksize)


def _table_floats(avals: Avals, params: TableParams) -> Avals:
    return (Aval((params["rows"], params["columns"]), params["dtype"]),)


def _table_parts(avals: Avals, params: TableParams) -> Cuts:
    """Rows, where each has whole bytes and whole blocks."""
    ((rows, columns),) = (made.shape for made in _table_floats(avals, params))
    if columns % 2 or columns % params["blocksize"] or rows < 2 or len(avals[0].shape) != 2:
        return ()
    step = max(1, PART // columns)
    return (AxisCut(0, rows, step, (0, 0, None)),) if step < rows else ()


@kernel("dequantize", result=_table_floats, host=_anywhere, workspace=_mxfp4_space, parts=_table_parts)
def of_table(
    packed: Array, maxima: Array, table: Array, *, blocksize: int, dtype: DType, rows: int, columns: int
) -> Array:
    """Bytes [n / 2, 1] of two codes of a table, as floats [rows, columns]."""
    made = quantities.dequantize_table(packed, maxima, table, blocksize=blocksize, dtype=dtype)
    # Of a tensor with an odd number of elements the last byte holds one.
    return made[: min(made.shape[0], rows * columns)].reshape(-1, columns)


# --- Codes ------------------------------------------------------------------------------------------------------------

_NOT_FINITE = "a weight holds NaN or infinity, and has no largest entry"


def _all_finite(x: Array) -> Flag:
    return (np if on_host(x) else jnp).isfinite(widen(x)).all()


def _grid(avals: Avals, params: CodeParams) -> Avals:
    *lead, m, n = avals[0].shape
    rows, columns = (1 if not each else -(-size // each) for size, each in zip((m, n), params["block"], strict=True))
    return (Aval((*lead, rows, columns), FLOAT32),)


@kernel("quantize", result=_grid, host=_anywhere, workspace=_space, parts=_scales_parts, guarded=True,
        refusal=_NOT_FINITE)  # fmt: skip
def scales(x: Array, *, block: Block, dtype: DType) -> tuple[Array, Flag]:
    """The scale of each block."""
    made = quantities.choose_scales(x, block=block, dtype=dtype)
    return made, _all_finite(made)


@kernel("quantize", result=lambda avals, params: (Aval(avals[0].shape, FLOAT32),), host=_anywhere, guarded=True,
        refusal=_NOT_FINITE)  # fmt: skip
def scale_of_ends(low: Array, high: Array, *, dtype: DType) -> tuple[Array, Flag]:
    """The scale of a tensor whose least and largest entries these are."""
    largest = (np if on_host(low) else jnp).maximum(abs(widen(low)), abs(widen(high)))
    made = quantities.choose_scales(largest, block=(0, 0), dtype=dtype)
    return made, _all_finite(made)


@kernel("quantize", result=_floats, host=_anywhere, workspace=_space, parts=_parts_of_scales)
def codes(x: Array, scales: Array, *, block: Block, dtype: DType) -> Array:
    """The codes of a tensor [..., m, n] by its scales [..., a, b]."""
    return quantities.quantize_scaled(x, scales, block=block, dtype=dtype)


def _check_groups(avals: Avals, params: Params) -> None:
    if avals[0].shape[-1] % quantities.MX_GROUP:
        wrong = f"the last axis of {avals[0]} is no multiple of {quantities.MX_GROUP}, which share an exponent"
        raise Refusal("codes-unknown", wrong, key="target", hint="Narrow the pattern to matrices whose inputs are.")


def _exponents(avals: Avals, params: Params) -> Avals:
    *lead, n = avals[0].shape
    return (Aval((*lead, n // quantities.MX_GROUP), UINT8),)


def _exponents_parts(avals: Avals, params: Params) -> Cuts:
    (x,) = avals
    return _by_rows(_exponents(avals, params)[0].shape, x.shape[-2], (x.shape,))


@kernel("quantize", check=_check_groups, result=_exponents, host=_anywhere, workspace=_space, parts=_exponents_parts,
        guarded=True, refusal=_NOT_FINITE)  # fmt: skip
def exponents(x: Array) -> tuple[Array, Flag]:
    """The exponent of every 32 entries of the last axis, as bytes."""
    return quantities.choose_exponents(x), _all_finite(x)


def _fp4_blocks(avals: Avals, params: Params) -> Avals:
    return (Aval((*avals[1].shape, 16), UINT8),)


def _fp4_parts(avals: Avals, params: Params) -> Cuts:
    x, groups = avals
    return _by_rows((*groups.shape, 16), x.shape[-2], (x.shape, groups.shape))


@kernel("quantize", result=_fp4_blocks, host=_anywhere, workspace=_space, parts=_fp4_parts)
def fp4_codes(x: Array, exponents: Array) -> Array:
    """Bytes of two codes each."""
    return quantities.quantize_mxfp4(x, exponents)
