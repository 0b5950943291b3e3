"""Codes of quantized weights mean nothing without their scales: a step that computes on codes alone is refused, and of
codes that are written without their scales a note says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.codes import CodeFormat, Codes, find_codes, fits, may_be_codes, scales_beside
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic, Refusal
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.plan.model import Output
from brainsurgery_jax.plan.source import flow_yaml


class Coded(NamedTuple):
    """A tensor of codes that a step reads, and the scales beside it."""

    alias: str
    codes: Codes
    scales: Expr


def coded(alias: str, name: str, expr: Expr, names: Mapping[str, Expr]) -> Coded | None:
    """What stands beside a tensor of an alias, if it holds codes."""
    codes = find_codes(name, names.__contains__)
    if codes is None or not fits(codes, expr.aval.dtype):
        return None
    return Coded(alias, codes, names[codes.scales])


def describes_codes(tensors: Mapping[str, Aval], before: Mapping[str, Aval]) -> bool:
    """Whether what side files of a checkpoint say of its quantized weights may be so of these tensors, which were made
    of it: they are quantized in no way that it is not. Of codes that we do not know, only matrices of other types than
    floats are known."""
    now, then = _kinds_of_codes(tensors), _kinds_of_codes(before)
    if now or then:
        return bool(now) and (not then or now <= then)
    return any(len(a.shape) > 1 and not (a.dtype.is_float and a.dtype.bits >= 16) for a in tensors.values())


def _kinds_of_codes(tensors: Mapping[str, Aval]) -> set[tuple[CodeFormat, str]]:
    """The formats and dtypes of the codes among some tensors."""
    names = (name for name, aval in tensors.items() if may_be_codes(name, aval.dtype))
    found = ((find_codes(name, tensors.__contains__), tensors[name].dtype) for name in names)
    return {(codes.format, dtype.name) for codes, dtype in found if codes is not None and fits(codes, dtype)}


def refuse_codes_alone(made: Expr, read: Mapping[Expr, Coded], default_alias: str | None) -> None:
    """Refuse a result that is computed from codes, not only moved, and not from their scales as well."""
    reached = _reach(made, read)
    for expr, found in read.items():
        if (expr, True) in reached and not {(found.scales, False), (found.scales, True)} & reached:
            codes = found.codes
            where = codes.name if found.alias == default_alias else f"{found.alias}::{codes.name}"
            message = (
                f"'{where}' holds codes, {expr.aval}, whose scales are in '{codes.scales}': this step ignores them"
            )
            step = flow_yaml({"dequantize": {"target": where, "to": "bfloat16"}})[1:-1]
            raise Refusal("scale-ignored", message, hint=f"Make floats of it before: `{step}`.")


def _reach(made: Expr, read: Mapping[Expr, Coded]) -> set[tuple[Expr, bool]]:
    """The nodes below a result, each with whether something is computed of it on the way. Codes are not looked into."""
    seen: set[tuple[Expr, bool]] = set()
    stack = [(made, False)]
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        node, computed = at
        if node not in read:
            below = computed or (node.is_call and node.moves is None)
            stack += [(src, below) for src in node.srcs]
    return seen


# --- Outputs ----------------------------------------------------------------------------------------------------------


def scale_notes(made: Publication, output: Output, label: str) -> Iterator[Diagnostic]:
    """A note on codes that are written, of a checkpoint where scales stood beside them, if these no longer do."""
    found = [one for name, expr in made.tensors.items() for one in _without_scales(name, expr, made.tensors)]
    if not found:
        return
    (name, expr, codes), more = found[0], len(found) - 1
    scales, wanted = made.tensors.get(codes.scales), scales_beside(codes, name)
    others = f", and so are {more} more" if more else ""
    if wanted in made.tensors:
        why = f"is {expr.aval}, which the scales in '{wanted}', {made.tensors[wanted].aval}, do not fit"
    else:
        why = f"is written without its scales, which stood in '{codes.scales}'"
    if scales is not None and wanted not in made.tensors:
        hint = f"Move them as well, as a last step: `{flow_yaml({'move': _move(output, codes.scales, wanted)})[1:-1]}`."
    else:
        hint = (
            "Dequantize it before names or shapes change: `dequantize: {target: '.*', to: bfloat16}` as a first step."
        )
    yield Diagnostic("scale-left", f"{label}: '{name}', codes, {why}{others}", made.span, hint, "note")


def _move(output: Output, old: str, new: str) -> dict[str, str]:
    alias = "" if output.alias is None else f"{output.alias}::"
    return {"from": alias + old, "to": alias + new}


def _without_scales(name: str, expr: Expr, tensors: Mapping[str, Expr]) -> Iterator[tuple[str, Expr, Codes]]:
    """A tensor, if it holds codes of a checkpoint and the tensor that should be their scales is not there, or does not
    fit."""
    if not may_be_codes(name, expr.aval.dtype):
        return
    leaf = _leaf(expr)
    if not leaf.is_leaf or not may_be_codes(leaf.name, leaf.aval.dtype):
        return
    header = leaf.source.header.tensors
    codes = find_codes(leaf.name, header.__contains__)
    if codes is None or not fits(codes, leaf.aval.dtype):
        return
    scales = tensors.get(scales_beside(codes, name))
    if scales is None or not _fit(codes, leaf.aval, header[codes.scales].aval, expr.aval, scales.aval):
        yield name, expr, codes


def _leaf(expr: Expr) -> Expr:
    """The tensor that a value is moved from, or itself."""
    while expr.is_call and expr.moves is not None:
        expr = expr.srcs[0]
    return expr


def _fit(codes: Codes, old: Aval, old_scales: Aval, new: Aval, scales: Aval) -> bool:
    """Whether scales are as many for codes as they were in the checkpoint."""
    if codes.format is not CodeFormat.SCALED or len({len(a.shape) for a in (old, old_scales, new, scales)}) > 1:
        return True
    return all(_in_blocks(*sizes) for sizes in zip(old.shape, old_scales.shape, new.shape, scales.shape, strict=True))


def _in_blocks(old: int, old_count: int, new: int, count: int) -> bool:
    """Whether an axis has as many scales as blocks of the size that it had before."""
    if old_count in (0, 1):
        return count == old_count
    each = 128 if -(-old // 128) == old_count else max(1, old // old_count)
    return -(-new // each) == count
