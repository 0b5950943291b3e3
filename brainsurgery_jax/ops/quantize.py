"""Quantized weights: codes with their scales become floats, and floats codes with scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, StrictBool, StrictInt

from brainsurgery_jax.codes import (
    CONFIG_KEY,
    USUAL_BLOCK,
    CodeFormat,
    Codes,
    usual_block,
)
from brainsurgery_jax.dtypes import BY_NAME, DType, float_hint
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.keys import Word
from brainsurgery_jax.op import DTypeName, Pattern, control
from brainsurgery_jax.ops import _codes as kernels
from brainsurgery_jax.ops._codes import scale_block
from brainsurgery_jax.ops._compressed import unpack_rows
from brainsurgery_jax.ops._packing import pack_matrix
from brainsurgery_jax.ops._quantization import (
    CodeRequest,
    check_awq,
    config_of_codes,
    config_of_floats,
    config_with,
    find_quantized,
    modules_left,
    read_settings,
    zero_offset_of,
)
from brainsurgery_jax.ops.reduce import reduce_tensor
from brainsurgery_jax.ops.shape import concatenate, permute, section, with_shape
from brainsurgery_jax.protocol import Bind, Drop, Edit, PairCodes, TensorExpr, View
from brainsurgery_jax.select import Ref

BlockSizes = Annotated[
    tuple[Annotated[StrictInt, Field(gt=0)], Annotated[StrictInt, Field(gt=0)]],
    Field(description="rows and columns that share a scale"),
]
Transposed = Annotated[
    StrictBool, Field(description="of mxfp4: whether the floats of experts are [experts, in, out], as in gpt-oss")
]
ZeroOffset = Annotated[
    Literal[0, 1], Field(description="of GPTQ: what is added to stored zeros; without it as the config says, else 1")
]
_PACKED_ROWS = ("weight_shape", "weight_zero_point", "weight_g_idx")


# --- Rows -------------------------------------------------------------------------------------------------------------


def _in_whole_blocks(view: View, rows: int, each: int, axis: int, make: Callable[[int, int], TensorExpr]) -> TensorExpr:
    """What `make(start, stop)` makes of all rows: of those in whole blocks, which go by in parts, and of the rest."""
    even = rows // each * each if 0 < each < rows else 0
    if even in (0, rows):
        return make(0, rows)
    return view.apply(concatenate, make(0, even), make(even, rows), axis=axis)


def _rows(view: View, x: TensorExpr, start: int, stop: int) -> TensorExpr:
    """Some of the rows of a tensor [..., m, n]."""
    axis = len(x.aval.shape) - 2
    if (start, stop) == (0, x.aval.shape[axis]):
        return x
    return view.apply(section, x, axis=axis, start=start, stop=stop)


# --- Floats of codes --------------------------------------------------------------------------------------------------


class FloatRequest(NamedTuple):
    """What a step asks of dequantization, and what the config says."""

    dtype: DType
    block: tuple[int, int] | None
    zero_offset: int
    transposed: bool
    usual: tuple[int, int] = USUAL_BLOCK


def _floats(view: View, alias: str, codes: Codes, asked: FloatRequest) -> TensorExpr:
    """The floats that codes stand for. Raises Refusal."""
    x, scales = view.fetch(alias, codes.name, "target"), view.fetch(alias, codes.scales, "target")
    try:
        match codes.format:
            case CodeFormat.SCALED:
                return _scale(view, x, (scales, *(view.fetch(alias, n) for n in codes.others.values())), asked)
            case CodeFormat.MXFP4:
                made = view.apply(kernels.mxfp4, x, scales, dtype=asked.dtype)
                return _swap(view, made) if asked.transposed and len(made.aval.shape) == 3 else made
            case CodeFormat.ROWS:
                return view.apply(kernels.by_row_maxima, x, scales, dtype=asked.dtype)
            case CodeFormat.PACKED:
                return _unpack(view, alias, codes, asked)
            case CodeFormat.PACKED_ROWS:
                names = (codes.name, codes.scales, *map(codes.others.get, _PACKED_ROWS))
                return unpack_rows(view, alias, names, (read_settings(view, alias) or {}).get(CONFIG_KEY), asked.dtype)
            case CodeFormat.TABLE:
                return _of_table(view, alias, codes, asked)
    except Refusal as bad:
        raise bad.about(f" ('{codes.name}')" if codes.name not in bad.message else "") from bad


def _swap(view: View, x: TensorExpr) -> TensorExpr:
    return view.apply(permute, x, order=(0, 2, 1))


def _scale(view: View, x: TensorExpr, by: Sequence[TensorExpr], asked: FloatRequest) -> TensorExpr:
    """Codes times the scales of their blocks; zeros, if there are some, are subtracted before."""
    shape = x.aval.shape
    matrix = view.apply(with_shape, x, shape=(1, *shape)[-2:]) if len(shape) < 2 else x
    grid, block = scale_block(matrix.aval, by[0].aval, asked.block, asked.usual)
    factors = [view.apply(with_shape, each, shape=grid) for each in by]
    axis, rows = len(grid) - 2, matrix.aval.shape[-2]

    def make(start: int, stop: int) -> TensorExpr:
        own = factors
        if grid[axis] > 1:
            own = [_rows(view, each, start // block[0], -(-stop // block[0])) for each in factors]
        return view.apply(kernels.scaled, _rows(view, matrix, start, stop), *own, block=block, dtype=asked.dtype)

    made = _in_whole_blocks(view, rows, block[0] if grid[axis] > 1 else rows, axis, make)
    return made if len(shape) >= 2 else view.apply(with_shape, made, shape=shape)


def _unpack(view: View, alias: str, codes: Codes, asked: FloatRequest) -> TensorExpr:
    """The floats of packed words: of GPTQ if a word holds eight inputs, of AWQ if it holds eight outputs."""
    parts = [view.fetch(alias, name, "target") for name in (codes.name, codes.others["qzeros"], codes.scales)]
    words, zeros, scales = (part.aval.shape for part in parts)
    if len(words) != 2 or len(scales) != 2 or scales[1] == 0:
        raise Refusal("codes-unknown", f"{parts[0].aval} with scales {parts[2].aval} is no packed matrix", key="target",
                      hint="Narrow the pattern, so that it leaves such tensors out.")  # fmt: skip
    check_awq(view, alias, codes.name, by_outputs=words[1] != scales[1])
    if words[1] == scales[1]:
        groups = [view.fetch(alias, name, "target") for ending, name in codes.others.items() if ending == "g_idx"]
        bits = 32 * zeros[1] // scales[1]
        return view.apply(kernels.gptq, *parts, *groups, bits=bits, zero_offset=asked.zero_offset, dtype=asked.dtype)
    return view.apply(kernels.awq, *parts, bits=32 * words[1] // scales[1], dtype=asked.dtype)


def _of_table(view: View, alias: str, codes: Codes, asked: FloatRequest) -> TensorExpr:
    """The floats of bitsandbytes' four bits, whose shape is a text in a tensor: known when the tensor is read."""
    parts = {ending: view.fetch(alias, name, "target") for ending, name in codes.others.items()}
    packed, maxima = (view.fetch(alias, name, "target") for name in (codes.name, codes.scales))
    state, table, size = next(e for n, e in parts.items() if "state" in n), parts[".quant_map"], 2 * packed.aval.size

    def number(key: str, bound: int, at: int = 0) -> int:
        return view.number(view.apply(kernels.state_number, state, key=key, at=at), bound)

    if ".nested_absmax" in parts:
        inner = (parts[".nested_quant_map"], parts[".nested_absmax"], view.apply(kernels.state_offset, state))
        each = number("nested_blocksize", maxima.aval.size)
        maxima = view.apply(kernels.nested_maxima, maxima, *inner, blocksize=each)
    rows, count, each = number("shape", size), number("shape", size, -1), number("blocksize", size)
    sizes = {"rows": rows, "columns": count // rows, "blocksize": each}
    return view.apply(kernels.of_table, packed, maxima, table, **sizes, dtype=asked.dtype)


@control()
def dequantize(
    view: View,
    *,
    target: Pattern,
    to: DTypeName,
    block: BlockSizes | None = None,
    zero_offset: ZeroOffset | None = None,
    transposed: Transposed = True,
) -> Iterator[Edit]:
    """Make floats of quantized weights, by the scales beside them; these are removed. Other matches stay as they are.

    What is quantized is known by names and dtypes: fp8 and int8 with `_scale_inv` or `_scale` (one scale, one for each
    row, or one for each block, as shapes say), MXFP4 of gpt-oss (`_blocks`, `_scales`), GPTQ and AWQ of 2, 4 or 8 bits
    (`qweight`, `qzeros`, `scales`, `g_idx`), packed rows of compressed-tensors (`weight_packed`), bitsandbytes (int8,
    nf4, fp4). Scales of activations
    (`input_scale`) stay.
    Computed in float32, rounded once. `quantization_config` is removed from the config once nothing is quantized.
    Example: `dequantize: {target: '.*', to: bfloat16}`
    Reference: docs/quantization.md has the formulas and their sources.
    """
    if not to.is_float or to.bits < 16:
        hint = "Write `to: bfloat16`, or float16, float32, float64."
        raise Refusal("dtype-unsupported", f"{to} does not hold the values of quantized weights", key="to", hint=hint)
    names = view.match(target, "target")
    if not names:
        raise view.nothing(target, "target")
    found = list(find_quantized(view, target.alias, names))
    if not found:
        hint = "Codes and scales are told by their names, such as `x.weight` and `x.weight_scale`; `move` renames them."
        raise Refusal("codes-unknown", f"nothing that '{target.name}' matches is quantized, with scales beside it",
                      key="target", hint=hint)  # fmt: skip
    zeros, usual = zero_offset_of(view, target.alias, zero_offset), usual_block(read_settings(view, target.alias))
    asked = FloatRequest(to, block, zeros, transposed, usual)
    for codes in found:
        view.check_scales(target.alias, codes.name, block or usual, "target")
    for codes in found:
        yield from _replace(view, target.alias, codes, asked)
    gone = {name for codes in found for name in (codes.name, *codes.parts)}
    rest = list(find_quantized(view, target.alias, (n for n in view.names(target.alias) if n not in gone)))
    yield from config_of_floats(view, target.alias, [c.result for c in found], [c.result for c in rest])


def _replace(view: View, alias: str, codes: Codes, asked: FloatRequest) -> Iterator[Edit]:
    """The edits that put floats in place of codes."""
    made = _floats(view, alias, codes, asked)
    yield Bind(alias, codes.result, made, "rebind" if codes.result == codes.name else "new", (alias, codes.name))
    for name in (codes.name, *codes.parts):
        if name != codes.result:
            yield Drop(alias, name)


# --- Codes of floats --------------------------------------------------------------------------------------------------

QuantizedTo = Annotated[
    Literal["float8_e4m3fn", "float8_e5m2", "int8", "mxfp4", "gptq", "awq"],
    Word,
    Field(description="what the codes are"),
]
Per = Annotated[Literal["tensor", "channel", "block"], Word, Field(description="what has a scale of its own")]


Group = Annotated[StrictInt, Field(gt=0, description="of gptq and awq: inputs that share a scale; else 128")]
WORDS = ("gptq", "awq")


def _check_weight(name: str, x: TensorExpr, to: str) -> None:
    if not x.aval.dtype.is_float or x.aval.dtype.bits < 16:
        hint = float_hint(x.aval.dtype) if x.aval.dtype.is_integer else "Narrow the pattern, so that it leaves it out."
        raise Refusal("dtype-unsupported", f"'{name}' is {x.aval}, and only floats of 16 bits or more are quantized",
                      key="target", hint=hint, kinds=("float",))  # fmt: skip
    if len(x.aval.shape) < 2 or 0 in x.aval.shape:
        hint = "Narrow the pattern to matrices: biases and norms are not quantized."
        raise Refusal("not-a-matrix", f"'{name}' is {x.aval}, and only matrices are quantized", key="target", hint=hint)


@control()
def quantize(
    view: View,
    *,
    target: Pattern,
    to: QuantizedTo,
    per: Per | None = None,
    block: BlockSizes | None = None,
    group: Group | None = None,
    transposed: Transposed = True,
) -> Iterator[Edit]:
    """Quantize matrices [..., out, in] to the nearest codes; scales are added beside them.

    `per: tensor` and `per: channel` (each row; the default) write `x_scale`, `per: block` (or `block: [128, 128]`)
    writes `x_scale_inv` (of int8 `x_scale`): what codes are multiplied by, in float32, such that the largest entry
    becomes the largest code. int8 is symmetric (-127 to 127). `to: mxfp4` writes `x_blocks` and `x_scales` in place of
    `x`, with an exponent for every 32 entries of the last axis. `to: gptq` and `to: awq` pack `x.weight` into words of
    eight codes of 4 bits, `x.qweight`, with scales and zeros for each `group` of inputs: rounded to the nearest,
    without the calibration of these methods. `quantization_config` is set in the config, if there is one.
    Example: `quantize: {target: '.*_proj\\.weight', to: float8_e4m3fn, block: [128, 128]}`
    Reference: docs/quantization.md has the formulas and their sources.
    """
    chosen = per or ("block" if block is not None else "channel")
    bare = to == "mxfp4" or to in WORDS
    if (block is not None and chosen != "block") or (bare and (per or block)):
        hint = f"{to} has groups of its own: leave out `per` and `block`." if bare else "Leave out `block`."
        raise Refusal("codes-unknown", "these keys do not go together", key="block" if block else "per", hint=hint)
    if group is not None and to not in WORDS:
        raise Refusal("codes-unknown", f"{to} has no groups", key="group", hint="Leave out `group`.")
    wanted = CodeRequest(to, chosen, block or (128, 128), transposed, group or 128)
    make = _to_mxfp4 if to == "mxfp4" else _to_words if to in WORDS else _to_codes
    for name, x in view.select(target, "target"):
        _check_weight(name, x, to)
        try:
            yield from make(view, target, name, x, wanted)
        except Refusal as bad:
            raise bad.about(f" ('{name}')" if name not in bad.message else "") from bad
    yield from config_with(view, target, config_of_codes(wanted, modules_left(view, target)))


def _to_codes(view: View, target: Ref, name: str, x: TensorExpr, wanted: CodeRequest) -> Iterator[Edit]:
    """The edits that put codes and scales in place of a tensor [..., m, n]."""
    dtype, sizes, shape = BY_NAME[wanted.to], wanted.sizes, x.aval.shape
    axis, rows = len(shape) - 2, shape[-2]
    if wanted.per == "tensor":
        ends = (view.apply(reduce_tensor, x, mode=mode, axes=tuple(range(len(shape)))) for mode in ("min", "max"))
        scales = view.apply(kernels.scale_of_ends, *ends, dtype=dtype)
    else:
        make = lambda a, b: view.apply(kernels.scales, _rows(view, x, a, b), block=sizes, dtype=dtype)  # noqa: E731
        scales = _in_whole_blocks(view, rows, sizes[0], axis, make)
    grid, each = scale_block(x.aval, scales.aval, sizes if wanted.per == "block" else None)

    def codes(start: int, stop: int) -> TensorExpr:
        own = scales if grid[axis] == 1 else _rows(view, scales, start // each[0], -(-stop // each[0]))
        return view.apply(kernels.codes, _rows(view, x, start, stop), own, block=each, dtype=dtype)

    made = _in_whole_blocks(view, rows, each[0] if grid[axis] > 1 else rows, axis, codes)
    kept = view.apply(with_shape, scales, shape=(1,)) if wanted.per == "tensor" else scales
    yield Bind(target.alias, name, made, "rebind")
    yield Bind(target.alias, name + wanted.ending, kept, "new", (target.alias, name))
    yield PairCodes(target.alias, name, wanted.block if wanted.per == "block" else None)


def _to_mxfp4(view: View, target: Ref, name: str, x: TensorExpr, wanted: CodeRequest) -> Iterator[Edit]:
    """The edits that put bytes and exponents in place of a tensor."""
    rows = _swap(view, x) if wanted.transposed and len(x.aval.shape) == 3 else x
    exponents = view.apply(kernels.exponents, rows)
    for ending, made in (("_blocks", view.apply(kernels.fp4_codes, rows, exponents)), ("_scales", exponents)):
        yield Bind(target.alias, name + ending, made, "new", (target.alias, name))
    yield PairCodes(target.alias, f"{name}_blocks")
    yield Drop(target.alias, name)


def _to_words(view: View, target: Ref, name: str, x: TensorExpr, wanted: CodeRequest) -> Iterator[Edit]:
    """The edits that put words, zeros, scales and, for GPTQ, the group of each input in place of a matrix."""
    for ending, made in pack_matrix(view, name, x, group=wanted.group, awq=wanted.to == "awq").items():
        yield Bind(target.alias, name.removesuffix("weight") + ending, made, "new", (target.alias, name))
    yield PairCodes(target.alias, name.removesuffix("weight") + "qweight")
    yield Drop(target.alias, name)
