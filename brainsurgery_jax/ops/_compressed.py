"""Weights as compressed-tensors packs them (`pack-quantized`): words of codes along the inputs, which have a scale for
each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from brainsurgery_jax._lazy import Array
from brainsurgery_jax.dtypes import Aval, DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.index.parts import AxisCut, Cuts
from brainsurgery_jax.numerics import quantities
from brainsurgery_jax.op import Avals, kernel
from brainsurgery_jax.ops.sets import entry
from brainsurgery_jax.protocol import TensorExpr, View
from brainsurgery_jax.select import names_begun

PART = 1 << 20
"""Elements of a part, about."""
WIDTHS = (2, 4, 8)
"""The bits that a code may have. Without a config that says how many, shapes tell 4 from 8."""
ON_THE_WAY = 24
"""Bytes for each element: codes, zeros and factors."""


class PackedRows(TypedDict):
    """The bits of a code, how many inputs there are, and whether zeros and groups of inputs are given."""

    bits: int
    columns: int
    dtype: DType
    zeros: bool


def _check(avals: Avals, params: PackedRows) -> None:
    words, scales, *others = avals
    count = 32 // params["bits"]
    rows, groups = scales.shape if len(scales.shape) == 2 else (0, 0)
    right = (
        params["bits"] in WIDTHS and len(words.shape) == 2 and words.shape == (rows, -(-params["columns"] // count))
        and scales.dtype.is_float and groups > 0
        and (not params["zeros"] or others[0].shape == (-(-rows // count), groups))
        and (len(others) > params["zeros"] or params["columns"] % groups == 0)
    )  # fmt: skip
    if not right:
        raise _wrong(words, scales)


def _wrong(words: Aval, scales: Aval) -> Refusal:
    wrong = f"words {words} and scales {scales} do not belong to one matrix of 2, 4 or 8 bits"
    return Refusal("codes-unknown", wrong, key="target", hint="Narrow the pattern, so that it leaves it out.")


def _floats(avals: Avals, params: PackedRows) -> Avals:
    return (Aval((avals[0].shape[0], params["columns"]), params["dtype"]),)


def _space(avals: Avals, params: PackedRows) -> int:
    return ON_THE_WAY * avals[0].shape[0] * params["columns"]


def _parts(avals: Avals, params: PackedRows) -> Cuts:
    """Cuts along the rows: in words of zeros, if there are some."""
    rows, each = avals[0].shape[0], 32 // params["bits"] if params["zeros"] else 1
    if rows % each:
        return ()
    step = max(1, PART // max(1, each * params["columns"]))
    cut = (0, 0, *((0,) if params["zeros"] else ()), *((None,) * (len(avals) - 2 - params["zeros"])))
    return (AxisCut(0, rows // each, step, cut),) if step < rows // each else ()


@kernel("dequantize", check=_check, result=_floats, host=lambda avals, params: True, workspace=_space, parts=_parts)
def packed_rows(
    words: Array, scales: Array, *others: Array, bits: int, columns: int, zeros: bool, dtype: DType
) -> Array:
    """Words [out, in * bits / 32] as floats [out, in]."""
    return quantities.dequantize_packed_rows(
        words, scales, others[0] if zeros else None, others[-1] if len(others) > zeros else None,
        bits=bits, columns=columns, dtype=dtype,
    )  # fmt: skip


def unpack_rows(view: View, alias: str, names: Sequence[str | None], settings: object, dtype: DType) -> TensorExpr:
    """The floats of a packed matrix. `names`: words, scales, shape, and zeros and groups, if there are some;
    `settings`: what the config says of the quantization. Raises Refusal."""
    words, scales, shape, zeros, groups = (view.fetch(alias, n, "target") if n else None for n in names)
    assert words is not None and scales is not None and shape is not None
    # Rows are filled up to whole words, so that only the tensor with the shape knows how many inputs there are.
    if len(words.aval.shape) != 2 or shape.aval.shape != (2,):
        raise _wrong(words.aval, scales.aval)
    rows, count = words.aval.shape
    fitting = (4, 8) if zeros is None else [each for each in (4, 8) if zeros.aval.shape[0] == -(-rows * each // 32)]
    said = _widths(settings, str(names[0]).removesuffix(".weight_packed"))
    usual = said if len(said) == 1 else [each for each in said if zeros is None or each in fitting] or fitting
    columns = view.number(view.apply(entry, shape, axis=0, at=1), count * 32 // next(iter(usual), 4))
    right = [each for each in usual if -(-columns * each // 32) == count]
    if len(right) > 1 and said:
        wrong = (
            f"words {words.aval} of {columns} inputs may be of {right[0]} or {right[1]} bits, as groups of the config"
        )
        raise Refusal("codes-unknown", wrong, key="target",
                      hint="Name the module in the `targets` of its group, in config.json.")  # fmt: skip
    bits = next(iter(right), next(iter(said), 4))
    given = [x for x in (zeros, groups) if x is not None]
    return view.apply(
        packed_rows, words, scales, *given, bits=bits, columns=columns, zeros=zeros is not None, dtype=dtype
    )


def _widths(settings: object, module: str) -> list[int]:
    """The bits that a code may have, the least first, as a config says: those of the groups that name the module, else
    of those that name classes, else of all. Empty if it says nothing."""
    groups = settings.get("config_groups") if isinstance(settings, Mapping) else None
    found: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
        if isinstance(bits, int) and bits in WIDTHS:
            found[_distance(group.get("targets"), module)].add(bits)
    return sorted(next(filter(None, found.values()), ()))


def _distance(targets: object, module: str) -> int:
    """How closely the targets of a group name a module: 0 by its name or a pattern, 1 by a class, 2 not at all."""
    texts = [each for each in targets if isinstance(each, str)] if isinstance(targets, list) else []
    patterns = (each.removeprefix("re:") for each in texts if each.startswith("re:"))
    if module in texts or any(names_begun(pattern, (module,)) for pattern in patterns):
        return 0
    return 1 if any(each.isidentifier() for each in texts) else 2
