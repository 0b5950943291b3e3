"""Kernels that pack a matrix into words of eight codes of four bits, as GPTQ and AWQ store them."""

from __future__ import annotations

from typing import TypedDict

from brainsurgery_jax._lazy import Array, Flag, jnp, np
from brainsurgery_jax.dtypes import BY_NAME, FLOAT16, Aval, DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.parts import AxisCut, Cuts
from brainsurgery_jax.numerics import quantities
from brainsurgery_jax.numerics.math import on_host, widen
from brainsurgery_jax.op import Avals, Params, kernel
from brainsurgery_jax.protocol import TensorExpr, View

WORD = 8
"""Codes in a word."""
PART = 1 << 20
"""Elements of a part, about."""
ON_THE_WAY = 32
"""Bytes for each element: codes, quotients and groups, in four bytes each."""


INT32 = BY_NAME["int32"]


class GroupParams(TypedDict):
    """How many inputs share a scale."""

    group: int


class ScaleParams(GroupParams):
    """The dtype of the scales."""

    dtype: DType


class WordParams(GroupParams):
    """Whether words hold eight outputs, in the order of AWQ, and not eight inputs."""

    awq: bool


def _anywhere(avals: Avals, params: Params) -> bool:
    return True


def _space(avals: Avals, params: Params) -> int:
    return ON_THE_WAY * avals[0].size


def _check(avals: Avals, params: GroupParams) -> None:
    x, group = avals[0], params["group"]
    if len(x.shape) != 2 or x.shape[0] % WORD or x.shape[1] % WORD or x.shape[1] % group:
        wrong = f"{x} has no sides that are multiples of {WORD}, with inputs in whole groups of {group}"
        raise Refusal("codes-unknown", wrong, key="target",
                      hint="Narrow the pattern to matrices that have, or choose `group`.")  # fmt: skip


def _by_outputs(avals: Avals, axis: int) -> Cuts:
    """Cuts along the outputs, in words; they lie along this axis of the result and of all operands but the first."""
    outputs, inputs = avals[0].shape
    step = max(1, PART // max(1, WORD * inputs))
    return (AxisCut(axis, outputs // WORD, step, (0, *(1 for _ in avals[1:]))),) if step < outputs // WORD else ()


def _scales(avals: Avals, params: ScaleParams) -> Avals:
    outputs, inputs = avals[0].shape
    return (Aval((inputs // params["group"], outputs), params["dtype"]),)


@kernel("quantize", check=_check, result=_scales, host=_anywhere, workspace=_space, guarded=True,
        parts=lambda avals, params: _by_outputs(avals, 1),
        refusal="a weight holds NaN or infinity, or a number too large or too small for its scale")  # fmt: skip
def group_scales(x: Array, *, group: int, dtype: DType) -> tuple[Array, Flag]:
    """The scales [groups, out] of a matrix [out, in]."""
    made, held = quantities.choose_group_scales(x, group=group, dtype=dtype)
    return made, held & (np if on_host(x) else jnp).isfinite(widen(made)).all()


def _zeros(avals: Avals, params: WordParams) -> Avals:
    groups, outputs = avals[1].shape
    return (Aval((groups, outputs // WORD), INT32),)


@kernel("quantize", result=_zeros, host=_anywhere, workspace=_space,
        parts=lambda avals, params: _by_outputs(avals, 1))  # fmt: skip
def zero_words(x: Array, scales: Array, *, group: int, awq: bool) -> Array:
    """The words [groups, out / 8] of the zeros; those of GPTQ are stored less one."""
    zeros = quantities.choose_group_zeros(x, scales, group=group)
    if awq:
        return quantities.pack_words(zeros, 4, 1, quantities.AWQ_ORDER)
    return quantities.pack_words((zeros - np.int32(1)) & np.int32(quantities.INT4), 4, 1)


def _words(avals: Avals, params: WordParams) -> Avals:
    outputs, inputs = avals[0].shape
    return (Aval((inputs, outputs // WORD) if params["awq"] else (inputs // WORD, outputs), INT32),)


@kernel("quantize", result=_words, host=_anywhere, workspace=_space,
        parts=lambda avals, params: _by_outputs(avals, 1))  # fmt: skip
def code_words(x: Array, scales: Array, *, group: int, awq: bool) -> Array:
    """The words of the codes: [in, out / 8] of AWQ, [in / 8, out] of GPTQ."""
    codes = quantities.quantize_groups(x, scales, group=group)
    return quantities.pack_words(codes, 4, 1, quantities.AWQ_ORDER) if awq else quantities.pack_words(codes, 4, 0)


def pack_matrix(view: View, name: str, x: TensorExpr, *, group: int, awq: bool) -> dict[str, TensorExpr]:
    """What stands in place of a matrix [out, in], by the endings of their names. Raises Refusal."""
    if not name.endswith(".weight"):
        raise Refusal("codes-unknown", f"'{name}' is not called `.weight`, as what is packed into words is",
                      key="target", hint="Narrow the pattern to matrices that are, or `move` it before.")  # fmt: skip
    dtype = x.aval.dtype if x.aval.dtype.bits == 16 else FLOAT16
    scales = view.apply(group_scales, x, group=group, dtype=dtype)
    made = {
        "qweight": view.apply(code_words, x, scales, group=group, awq=awq),
        "qzeros": view.apply(zero_words, x, scales, group=group, awq=awq),
        "scales": scales,
    }
    if awq:
        return made
    return made | {"g_idx": view.constant(np.arange(x.aval.shape[1], dtype=np.int32) // np.int32(group), INT32)}
