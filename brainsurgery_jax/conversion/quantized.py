"""Quantized weights in a conversion: codes and their scales become floats first, since layouts have floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from brainsurgery_jax.codes import ACTIVATIONS, Codes, describe_floats, quantized_among
from brainsurgery_jax.conversion.model import Request, SourceInfo
from brainsurgery_jax.conversion.recognise import Route
from brainsurgery_jax.dtypes import DType, parse_dtype
from brainsurgery_jax.errors import Diagnostic, PlanError, worded


def find_quantized(found: SourceInfo) -> tuple[Codes, ...]:
    """The quantized weights of a checkpoint."""
    return quantized_among({name: aval.dtype for name, aval in found.avals.items()})


def float_type(request: Request) -> DType | None:
    """The dtype of floats that are made of codes, if the caller asks for them."""
    return None if request.dequantize is None else parse_dtype(request.dequantize)


def take_floats(found: SourceInfo, quantized: Sequence[Codes], dtype: DType) -> SourceInfo:
    """The facts about a checkpoint as they are after its codes have become floats.

    The shape of packed codes stays in its place: only that of adapters is looked at, which are not quantized."""
    made = {codes.name: codes.result for codes in quantized}
    gone = {part for codes in quantized for part in codes.parts}
    avals = {
        made.get(name, name): aval._replace(dtype=dtype) if name in made else aval
        for name, aval in found.avals.items()
        if name not in gone and name.rpartition(".")[2] not in ACTIVATIONS
    }
    return take_config_of_floats(replace(found, avals=avals))


def take_config_of_floats(found: SourceInfo) -> SourceInfo:
    """The facts about a checkpoint that becomes floats: its config says nothing of quantized weights."""
    return found if found.config is None else replace(found, config=describe_floats(found.config))


def refuse_codes(found: SourceInfo, quantized: Sequence[Codes], route: Route | None, request: Request) -> None:
    """Refuse codes where floats are needed: by a cast, and by a layout that names every tensor."""
    named = route is not None and not route.layout.rest
    if not quantized or not (named or request.dtype is not None):
        return
    first, more = quantized[0], len(quantized) - 1
    cast = "ignore the scales" if found.avals[first.name].dtype.is_float else "leave the codes as they are"
    needs = f"{route.layout.name} has floats" if route is not None and named else f"a cast would {cast}"
    told = f"'{first.name}' {f'and {more} more hold' if more else 'holds'} codes, with scales beside them, and {needs}"
    how = worded(shell="`--dequantize bfloat16`", python="`dequantize='bfloat16'`")
    raise PlanError([Diagnostic("convert-codes", f"{found.path}: {told}", hint=f"Make floats of them: {how}.")])


def refuse_floats(found: SourceInfo, quantized: Sequence[Codes], request: Request) -> None:
    """Refuse to make floats of codes where nothing is quantized."""
    if not quantized and request.dequantize is not None:
        told = (
            f"{found.path}: nothing in it is quantized, with scales beside it, so there are no floats to make of codes"
        )
        said = worded(shell="`--dequantize`; `--dtype {}` casts", python="`dequantize`; `dtype='{}'` casts")
        hint = f"Leave out {said.format(request.dequantize)} floats."
        raise PlanError([Diagnostic("convert-codes", told, hint=hint)])


def float_steps(request: Request, alias: str) -> list[dict[str, object]]:
    """The steps of a plan that make floats of codes, and remove the scales of activations."""
    if request.dequantize is None:
        return []
    left = {"target": rf"{alias}::.*\.({'|'.join(ACTIVATIONS)})", "if_missing": "skip"}
    return [{"dequantize": {"target": f"{alias}::.*", "to": request.dequantize}}, {"delete": left}]
