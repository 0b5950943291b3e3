"""The one table of dtypes: plan names, safetensors tags, widths; and `Aval`, a shape with a dtype."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["float", "int", "uint", "bool", "complex", "packed", "other"]
"""`packed`: floats of fewer than 8 bits; `other`: random keys, and what only JAX knows."""


class DType(NamedTuple):
    """An element type. `numpy` is its numpy or ml_dtypes name; None marks bytes that we carry but cannot compute on."""

    name: str
    short: str
    tag: str
    bits: int
    numpy: str | None
    kind: Kind
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        """Whether its values are real floats."""
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """Whether its values are integers, signed or not."""
        return self.kind in ("int", "uint")

    @property
    def is_signed(self) -> bool:
        """Whether its values are integers of either sign."""
        return self.kind == "int"

    @property
    def is_bool(self) -> bool:
        """Whether its values are true and false."""
        return self.kind == "bool"

    @property
    def is_complex(self) -> bool:
        """Whether its values are complex floats."""
        return self.kind == "complex"

    @property
    def is_inexact(self) -> bool:
        """Whether its values are floats, real or complex."""
        return self.is_float or self.is_complex

    @property
    def is_opaque(self) -> bool:
        """Whether its bytes can be moved, but not computed on."""
        return self.kind in ("packed", "other")


DTYPES: tuple[DType, ...] = (
    DType("bool", "bool", "BOOL", 8, "bool", "bool"),
    DType("uint8", "u8", "U8", 8, "uint8", "uint"),
    DType("int8", "i8", "I8", 8, "int8", "int"),
    DType("uint16", "u16", "U16", 16, "uint16", "uint"),
    DType("int16", "i16", "I16", 16, "int16", "int", ("short",)),
    DType("uint32", "u32", "U32", 32, "uint32", "uint"),
    DType("int32", "i32", "I32", 32, "int32", "int", ("int",)),
    DType("uint64", "u64", "U64", 64, "uint64", "uint"),
    DType("int64", "i64", "I64", 64, "int64", "int", ("long",)),
    DType("float16", "f16", "F16", 16, "float16", "float", ("half", "fp16")),
    DType("bfloat16", "bf16", "BF16", 16, "bfloat16", "float"),
    DType("float32", "f32", "F32", 32, "float32", "float", ("float", "fp32")),
    DType("float64", "f64", "F64", 64, "float64", "float", ("double", "fp64")),
    DType("complex64", "c64", "C64", 64, "complex64", "complex"),
    DType("complex128", "c128", "", 128, "complex128", "complex"),
    DType("float8_e5m2", "f8_e5m2", "F8_E5M2", 8, "float8_e5m2", "float"),
    DType("float8_e4m3fn", "f8_e4m3fn", "F8_E4M3", 8, "float8_e4m3fn", "float", ("float8_e4m3",)),
    DType("float8_e5m2fnuz", "f8_e5m2fnuz", "F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "float"),
    DType("float8_e4m3fnuz", "f8_e4m3fnuz", "F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "float"),
    DType("float8_e8m0fnu", "f8_e8m0fnu", "F8_E8M0", 8, "float8_e8m0fnu", "float"),
    DType("float6_e2m3fn", "f6_e2m3fn", "F6_E2M3", 6, None, "packed"),
    DType("float6_e3m2fn", "f6_e3m2fn", "F6_E3M2", 6, None, "packed"),
    DType("float4_e2m1fn", "f4_e2m1fn", "F4", 4, None, "packed"),
)  # fmt: skip

BY_TAG = {d.tag: d for d in DTYPES if d.tag}
BY_NAME = {name: d for d in DTYPES for name in (d.name, d.short, *d.aliases)}

OF_ARRAYS = {d.numpy or d.name: d for d in DTYPES}
"""By the name that the dtype of an array has. A plan's words for them are more, and may mean other dtypes of JAX."""

WIDER = {
    "int4": "int8", "int2": "int8", "int1": "int8", "uint4": "uint8", "uint2": "uint8", "uint1": "uint8",
    "float4_e2m1fn": "float8_e4m3fn", "float8_e3m4": "float16", "float8_e4m3": "float16",
    "float8_e4m3b11fnuz": "float16",
}  # fmt: skip
"""Element types of JAX that are computed on in a wider one, which holds all their values."""

FLOAT32, FLOAT64, INT64, BOOL, UINT8 = (BY_NAME[n] for n in ("float32", "float64", "int64", "bool", "uint8"))
FLOAT16, BFLOAT16 = BY_NAME["float16"], BY_NAME["bfloat16"]


def parse_dtype(name: str) -> DType | None:
    """The dtype of a plan's word for it (`bf16`, `BFloat16`, `half`, ...), or None."""
    return BY_NAME.get(name.strip().lower())


@cache
def to_numpy(dtype: DType) -> np.dtype:
    """The numpy dtype, of ml_dtypes where numpy has none. Raises TypeError if neither has it."""
    import numpy as np

    assert dtype.numpy is not None, "opaque bytes have no numpy dtype"
    try:
        return np.dtype(dtype.numpy)  # also finds the types of ml_dtypes, once that is imported
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, dtype.numpy, dtype.numpy))


def holds_all(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    if wide == narrow:
        return True
    if wide.is_opaque or narrow.is_opaque or _KIND_ORDER.index(wide.kind) < _KIND_ORDER.index(narrow.kind):
        return False
    if wide.is_float and wide.bits < 16:  # some of which have no infinity, or not even a zero
        return False
    if narrow.is_bool:
        return True
    if wide.is_integer:
        return wide.bits - wide.is_signed >= narrow.bits - narrow.is_signed
    digits, most = _precision(wide)
    if narrow.is_integer:
        return narrow.bits - narrow.is_signed <= digits and most >= narrow.bits
    return digits >= _precision(narrow)[0] and most >= _precision(narrow)[1]


_KIND_ORDER = ("bool", "uint", "int", "float", "complex")


def _precision(dtype: DType) -> tuple[int, int]:
    """Binary digits of a float (of both parts of a complex number), and the exponent of its largest value."""
    import ml_dtypes

    found = ml_dtypes.finfo(to_numpy(dtype))
    return int(found.nmant) + 1, int(found.maxexp)


def common_dtype(a: DType, b: DType) -> DType | None:
    """The least dtype that holds all values of two, one of them if it does; None if none does."""
    found = (d for d in (a, b, *sorted(DTYPES, key=lambda d: d.bits)) if holds_all(d, a) and holds_all(d, b))
    return next(found, None)


def common_dtype_hint(a: DType, b: DType) -> str:
    """What to do about two dtypes that differ: a cast that changes no value, if there is one."""
    if (fitting := common_dtype(a, b)) is None:
        return "Nothing is promoted, and no dtype holds all values of both. Leave such tensors out, or cast on purpose."
    which = "both" if fitting not in (a, b) else f"what is {b if fitting == a else a}"
    return f"Nothing is promoted. Cast {which} first: `cast_: {{target: ..., to: {fitting}}}`."


def opaque_message(dtype: DType) -> str:
    """What is wrong with a tensor that can be moved, but not computed on."""
    return f"{dtype} tensors can be named, copied and moved, but not computed on"


def opaque_hint(dtype: DType) -> str:
    """What to do about a tensor that can be moved, but not computed on: leaves that only JAX has can be widened."""
    if dtype.kind == "other" and dtype.name in WIDER:
        return f"Widen such leaves before, `leaf.astype('{WIDER[dtype.name]}')`, or narrow the pattern."
    return "Narrow the pattern, so that it leaves such tensors out."


def float_hint(dtype: DType) -> str:
    """How to make floats of what is none, whose values stay what they are where a float holds them."""
    return f"Cast first: `cast_: {{target: ..., to: {FLOAT32 if holds_all(FLOAT32, dtype) else FLOAT64}}}`."


class Aval(NamedTuple):
    """An abstract value: shape and dtype. Ours, not `jax.ShapeDtypeStruct`, so that checking a plan needs no JAX."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in row-major order, sub-byte types packed."""
        return (self.size * self.dtype.bits + 7) // 8

    def __str__(self) -> str:
        return f"{self.dtype.short}[{','.join(map(str, self.shape))}]"
