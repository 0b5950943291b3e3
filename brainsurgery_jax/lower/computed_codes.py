"""Steps that compute on codes of quantized weights alone, on scales alone, or write other values among codes: refused,
since codes mean nothing without their scales."""

from __future__ import annotations

from collections.abc import Mapping

from brainsurgery_jax.codes import Codes, fits
from brainsurgery_jax.dtypes import Aval, holds_all
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.lower.scales import Coded
from brainsurgery_jax.plan.source import flow_yaml


def refuse_codes_alone(made: Expr, read: Mapping[Expr, Coded], default_alias: str | None) -> None:
    """Refuse a result that is computed from codes, not only moved, and not from their scales as well, or from scales
    and not from their codes. Scales may be cast to a dtype that holds them all."""
    reached = _reach(made, read)
    computed = {e for e in reached if e in read and reached[e] > (WIDENED if read[e].part is not None else MOVED)}
    # Few of the codes that a step reads are in one result; of several the first that was read is told.
    for expr in computed if len(computed) < 2 else filter(computed.__contains__, read):
        found = read[expr]
        if found.beside.isdisjoint(reached):
            message = f"{_describe(found, expr.aval, default_alias)}: this step ignores them"
            raise Refusal("scale-ignored", message, hint=ask_floats(found, default_alias))


def _describe(found: Coded, aval: Aval, default_alias: str | None) -> str:
    """What a tensor of codes or scales is, and where the others are, in words."""
    codes = found.codes
    if found.part is not None:
        what = "holds scales" if found.part == codes.scales else "is a part of a weight"
        return f"'{_reference(found, default_alias, found.part)}' {what}, {aval}, whose codes are in '{codes.name}'"
    where = _reference(found, default_alias)
    if found.before is None:
        return f"'{where}' holds codes, {aval}, whose scales are in '{codes.scales}'"
    return f"'{where}' holds codes of '{found.before}', whose scales were left in '{codes.scales}'"


def refuse_other_values(
    made: Expr,
    before: Coded | None,
    read: Mapping[Expr, Coded],
    names: Mapping[str, Expr],
    default_alias: str | None,
) -> None:
    """Refuse a tensor that a step writes if some of its values are no codes, but stand among codes that it `read`, or
    in the place of those that were there `before`, while their scales stay among the `names` after the step."""
    reached = _rearranged(made, read)
    found = before if before is not None and _keeps_scales(made, before, names) else None
    found = found or next((own for expr, own in read.items() if expr in reached and own.part is None), None)
    if found is None or not any(_is_other_value(node, found.codes) for node in reached):
        return
    where, scales = _reference(found, default_alias), found.codes.scales
    message = f"'{where}' holds codes whose scales are in '{scales}', and this step writes values that are no codes"
    hint = ask_floats(found, default_alias)
    effects = _reach(made, read) if found is before else {}
    if any(effects.get(scales, MOVED) > MOVED for scales in found.beside):
        floats = flow_yaml({"dequantize": {"target": where, "to": "float32"}})[1:-1]
        hint = (
            f"The floats are `{floats}`, in place of this step. Other results need another name, by `to`, or a dtype "
            "of floats and a step that deletes the scales."
        )
    raise Refusal("scale-ignored", message, hint=hint)


def _keeps_scales(made: Expr, before: Coded, names: Mapping[str, Expr]) -> bool:
    """Whether a tensor would be read as codes with the scales of those whose place it takes."""
    return fits(before.codes, made.aval.dtype) and names.get(before.codes.scales) in before.beside


def _is_other_value(node: Expr, codes: Codes) -> bool:
    """Whether a node that a tensor is rearranged from holds values that are no codes. Tensors of checkpoints may be;
    zero is zero with any scale, unless codes have zeros of their own."""
    if node.is_const and node.value is not None:
        return codes.has_zeros or bool((node.value != 0).any())
    computed = node.is_pick or (node.is_call and node.moves is None)
    return computed and (node.paired is None or node.paired.codes is None)


def ask_floats(found: Coded, default_alias: str | None) -> str:
    """How codes become floats that a step can compute on."""
    if found.made and found.before is not None:
        return "Compute before the step `quantize`."
    target = _reference(found, default_alias, found.before)
    step = flow_yaml({"dequantize": {"target": target, "to": "bfloat16"}})[1:-1]
    if found.before is None:
        return f"Make floats of it before: `{step}`."
    return f"Make floats of it before it is renamed or cut, as a first step: `{step}`."


def _reference(found: Coded, default_alias: str | None, name: str | None = None) -> str:
    return ("" if found.alias == default_alias else f"{found.alias}::") + (name or found.codes.name)


def floats_instead(bad: Refusal, read: Mapping[Expr, Coded], default_alias: str | None) -> str:
    """The hint of a refusal of tensors that are no floats, if it names codes that a step reads: a cast would leave
    their scales out. Empty if it names none."""
    if bad.code != "dtype-unsupported" or "float" not in bad.kinds:
        return ""
    named = (found for found in read.values() for own in (found.part or found.codes.name,)
             if f"'{own}'" in bad.message or f"'{found.alias}::{own}'" in bad.message)  # fmt: skip
    found = next(named, None)
    return "" if found is None else ask_floats(found, default_alias)


MOVED, WIDENED, COMPUTED = range(3)
"""What happens to a tensor on the way to a result, at most."""


def _reach(made: Expr, read: Mapping[Expr, Coded]) -> dict[Expr, int]:
    """The nodes below a result, each with what happens to it on the way. Codes and scales are not looked into."""
    seen: dict[Expr, int] = {}
    stack = [(made, MOVED)]
    while stack:
        node, above = stack.pop()
        if seen.get(node, -1) >= above:
            continue
        seen[node] = above
        if node not in read:
            below = max(above, _effect(node))
            stack += [(src, below) for src in node.srcs]
    return seen


def _rearranged(made: Expr, read: Mapping[Expr, Coded]) -> set[Expr]:
    """The nodes that a result is rearranged from, with nothing computed. Codes and scales are not looked into."""
    seen: set[Expr] = set()
    stack = [made]
    while stack:
        if (node := stack.pop()) not in seen:
            seen.add(node)
            stack += () if node in read or _effect(node) > MOVED else node.srcs
    return seen


def _effect(node: Expr) -> int:
    """What a node does to its operands."""
    if not node.is_call or node.moves is not None:
        return MOVED
    casts = node.kernel is not None and node.kernel.name == "cast"
    return WIDENED if casts and holds_all(node.aval.dtype, node.srcs[0].aval.dtype) else COMPUTED
