"""Codes of quantized weights mean nothing without their scales: codes that are written beside the scales of others are
refused, and a note tells of codes that are written without their scales."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.codes import (
    CONFIG_KEY,
    Block,
    CodeFormat,
    Codes,
    find_codes,
    find_codes_beside,
    fits,
    may_be_codes,
    part_beside,
    quantized_among,
    usual_block,
)
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import Diagnostic
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.index.moves import Concat
from brainsurgery_jax.lower.following import Crossing, Trail, follow, sharing, trail_of
from brainsurgery_jax.lower.program import Publication
from brainsurgery_jax.lower.state import Space
from brainsurgery_jax.plan.model import Output
from brainsurgery_jax.plan.source import flow_yaml


class Coded(NamedTuple):
    """A tensor of codes that a step reads, and its scales, which lie beside it under the names of `codes`; or, with
    `before`, which lay beside the tensor of this name before it was renamed or cut. With `part`, the tensor of this
    name, which belongs to the codes: what lies beside it are these."""

    alias: str
    codes: Codes
    beside: frozenset[Expr]
    """What a step must compute on as well: one of these, since one tensor may have several names."""
    before: str | None = None
    made: bool = False
    """Whether the plan made the codes."""
    part: str | None = None


def name_of(leaf: Expr) -> str:
    """The name of a leaf in its checkpoint, or the first one of codes and scales that the plan made."""
    return leaf.name if leaf.paired is None else leaf.paired.name


def coded(alias: str, name: str, expr: Expr, names: Mapping[str, Expr]) -> Coded | None:
    """What stands beside a tensor of an alias, if it holds codes."""
    codes = find_codes(name, names.__contains__)
    if codes is None or not fits(codes, expr.aval.dtype):
        return None
    return Coded(alias, codes, frozenset((names[codes.scales],)))


def part_of_codes(alias: str, name: str, names: Mapping[str, Expr]) -> Coded | None:
    """The codes that a tensor of an alias belongs to, if it holds scales or the like."""
    codes = find_codes_beside(name, names.__contains__)
    if codes is None or not fits(codes, names[codes.name].aval.dtype):
        return None
    return Coded(alias, codes, frozenset((names[codes.name],)), part=name)


def codes_of(leaf: Expr, names: Container[str]) -> Codes | None:
    """The quantized weight whose codes a leaf is, among the names of its checkpoint, or as the plan made it."""
    if leaf.paired is not None:
        return leaf.paired.codes
    codes = find_codes(leaf.name, names.__contains__)
    return codes if codes is not None and fits(codes, leaf.aval.dtype) else None


def codes_at_first(leaf: Expr) -> Codes | None:
    """The quantized weight whose codes a leaf is, as its checkpoint has it or the plan made it; None for the leaves of
    pytrees."""
    return None if leaf.is_given else codes_of(leaf, leaf.source.header.tensors if leaf.is_leaf else ())


def is_part(leaf: Expr, codes: Expr, part: str) -> bool:
    """Whether a leaf is the tensor of a name in the checkpoint of another leaf, or was made with it under that name."""
    if codes.paired is not None:
        return codes.paired.parts.get(part) is leaf
    return leaf.kind is codes.kind and leaf.paired is None and leaf.source is codes.source and leaf.name == part


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
    found = quantized_among({name: aval.dtype for name, aval in tensors.items()})
    return {(codes.format, tensors[codes.name].dtype.name) for codes in found}


# --- Outputs ----------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """What is wrong with codes that are written, and whether they would be read with scales that are not theirs."""

    why: str
    left: str
    """The name of the part that was left behind, if it was."""
    wanted: str
    leaf: Expr
    mixed: bool = False
    joined: tuple[int, tuple[tuple[str, Aval], ...]] | None = None
    """Of codes that were joined along an axis: that axis, the names of their parts that were left, and their avals."""

    @property
    def made(self) -> bool:
        """Whether the plan made the codes."""
        return self.leaf.paired is not None

    def stays_among(self, tensors: Mapping[str, Expr]) -> bool:
        """Whether the codes still stand under their name as well, beside what was left behind."""
        return tensors.get(name_of(self.leaf)) is self.leaf

    def left_among(self, tensors: Mapping[str, Expr]) -> bool:
        """Whether what was left behind still stands under its name, and its new name is free."""
        left = tensors.get(self.left)
        return self.wanted not in tensors and left is not None and is_part(left, self.leaf, self.left)


def scale_notes(
    made: Publication, output: Output, label: str, config: Callable[[], object], spaces: Mapping[str, Space]
) -> Iterator[Diagnostic]:
    """What is wrong with codes that are written: an error, if others' scales stand beside them or scales were cut or
    ordered otherwise; a note, if these no longer stand there or do not fit. One of each, with the number of others.
    `config` reads the config.json of what is written, which is asked for codes alone; `spaces` are by their aliases."""
    written = [(name, expr) for name, expr in made.tensors.items() if may_be_codes(name, expr.aval.dtype)]
    if not written:
        return
    settings = config()
    usual = usual_block(settings)
    by_kind = defaultdict[bool, list[tuple[str, Fault]]](list)
    for name, expr in written:
        if (fault := find_fault(name, expr, made.tensors, usual, codes_at_first)) is not None:
            by_kind[fault.mixed].append((name, fault))
    says_floats = isinstance(settings, Mapping) and CONFIG_KEY not in settings
    alias = "" if output.alias is None else f"{output.alias}::"
    for mixed, ((name, fault), *more) in by_kind.items():
        others = f"; {len(more)} more like it" if more else ""
        home = _home(fault.leaf, spaces, output.alias)
        floats = flow_yaml({"dequantize": {"target": f"{home}.*", "to": "bfloat16"}})[1:-1]
        if fault.made:
            hint = "Let `quantize` come after all steps that rename, cut or order its results, or treat scales alike."
        elif mixed:
            hint = f"Move, cut and order scales as their codes, or make floats of all as a first step: `{floats}`."
        elif not fault.left_among(made.tensors):
            hint = f"Dequantize it before names or shapes change: `{floats}` as a first step."
        elif says_floats:
            hint = f"The config says that all are floats. Let `{floats}` be the first step."
        elif fault.joined is not None:
            hint = (
                _joining_hint(fault, alias, made.tensors, usual) or f"Dequantize before codes are joined: `{floats}`."
            )
        else:
            verb = "copy" if fault.stays_among(made.tensors) else "move"
            step = flow_yaml({verb: {"from": alias + fault.left, "to": alias + fault.wanted}})[1:-1]
            hint = f"{verb.capitalize()} them as well, as a last step: `{step}`."
        message = f"{label}: '{name}', codes, {fault.why}{others}"
        yield Diagnostic(
            "scale-mismatch" if mixed else "scale-left", message, made.span, hint, "error" if mixed else "note"
        )


def _joined(codes: Codes, part: str, trail: Trail) -> tuple[int, tuple[tuple[str, Aval], ...]] | None:
    """The axis along which codes were joined, and the parts that were left: None of codes of one tensor, or where more
    was done to them."""
    last = trail.nodes[-1]
    if len(trail.leaves) < 2 or not isinstance(last.moves, Concat) or not set(last.srcs) <= trail.leaves.keys():
        return None if len(trail.leaves) < 2 else (0, ())
    leaves = [trail.leaves[src] for src in last.srcs]
    return last.moves.axis, tuple((part_beside(codes, part, name_of(leaf)), leaf.aval) for leaf in leaves)


def _joining_hint(fault: Fault, alias: str, tensors: Mapping[str, Expr], usual: Block) -> str:
    """The steps that join scales as their codes; empty if these would not be theirs, since blocks end within a part."""
    axis, parts = fault.joined or (0, ())
    scales = [tensors[name].aval for name, _ in parts if name in tensors]
    if not parts or len(scales) < len(parts) or {len(scale.shape) for scale in scales} != {len(parts[0][1].shape)}:
        return ""

    def along(avals: Sequence[Aval]) -> Aval:
        size = sum(aval.shape[axis] for aval in avals)
        return Aval((*avals[0].shape[:axis], size, *avals[0].shape[axis + 1 :]), avals[0].dtype)

    shared = sharing(CodeFormat.SCALED, along([x for _, x in parts]), along(scales), usual)
    each = None if shared is None else shared.each[axis]
    sizes = [(x.shape[axis], scale.shape[axis]) for (_, x), scale in zip(parts, scales, strict=True)]
    if each is None or any(-(-size // each) != n for size, n in sizes) or any(size % each for size, _ in sizes[:-1]):
        return ""
    names = [alias + name for name, _ in parts]
    join = {"concat": {"from": names, "to": alias + fault.wanted, **({"dim": axis} if axis else {})}}
    gone = [] if fault.stays_among(tensors) else [{"delete": {"target": name}} for name in names]
    steps = (f"`{flow_yaml(step)[1:-1]}`" for step in [join, *gone])
    return f"Join them as well, as last steps: {', '.join(steps)}."


def _home(leaf: Expr, spaces: Mapping[str, Space], default: str | None) -> str:
    """The alias that a leaf was read into, as the beginning of a reference; that of an output, if it is gone or the
    output is of the only one."""
    first = name_of(leaf) if default is not None else ""
    found = (a for a, space in spaces.items() if (space.original or {}).get(first) is leaf)
    alias = next(found, default)
    return "" if alias is None else f"{alias}::"


def find_fault(
    name: str, expr: Expr, tensors: Mapping[str, Expr], usual: Block, codes_of_leaf: Callable[[Expr], Codes | None]
) -> Fault | None:
    """What is wrong with a tensor, if it holds codes of a checkpoint, beside those of some names. `usual`: the rows and
    columns that share a scale, if shapes leave that open."""
    trail = trail_of(expr, filled=True)
    if trail is None:
        return None
    found = ((leaf, codes_of_leaf(leaf)) for leaf in trail.leaves.values())
    first, codes = next(((leaf, codes) for leaf, codes in found if codes is not None), (expr, None))
    if codes is None:
        return None
    usual = usual if first.paired is None or first.paired.block is None else first.paired.block
    faults = (
        _fault_of_part(codes, part, name, trail, first, tensors, usual, codes_of_leaf)
        for part in codes.parts_that_count
    )
    return next((fault for fault in faults if fault is not None), None)


def _fault_of_part(
    codes: Codes,
    part: str,
    name: str,
    trail: Trail,
    first: Expr,
    tensors: Mapping[str, Expr],
    usual: Block,
    codes_of_leaf: Callable[[Expr], Codes | None],
) -> Fault | None:
    """What is wrong with the scales (or another part) of codes, which are written under a name. `first`: a leaf of
    them."""
    wanted = part_beside(codes, part, name)
    if wanted not in tensors:
        what = "its scales, which stood in" if part == codes.scales else "what stood in"
        joined = _joined(codes, part, trail)
        return Fault(f"is written without {what} '{part}'", part, wanted, first, joined=joined)
    there = trail_of(tensors[wanted])
    if there is None:  # scales that are computed are the plan's business
        return None
    if codes.format.packed:
        pairs, crossing = _pair_whole(trail, there), None
        fits_there = trail.is_whole and there.is_whole and len(trail.leaves) == len(there.leaves)
    else:
        found = follow(codes.format, trail.nodes, there.nodes, usual)
        fits_there = found is not None or trail.nodes[-1].aval.size == 0
        pairs, crossing = ((), None) if found is None else found
    for code, scale in pairs:
        leaf, beside = trail.leaves[code], there.leaves[scale]
        if codes_of_leaf(leaf) is not None and (why := _describe_stranger(leaf, beside, codes, part, wanted)):
            return Fault(why, part, wanted, first, mixed=True)
    if crossing is not None:
        return Fault(_describe_crossing(crossing, trail, there, wanted), part, wanted, first, mixed=True)
    if not fits_there:
        aval, scales = trail.nodes[-1].aval, there.nodes[-1].aval
        return Fault(f"is {aval}, which the scales in '{wanted}', {scales}, do not fit", part, wanted, first)
    return None


def _pair_whole(codes: Trail, part: Trail) -> Collection[tuple[int, int]]:
    """The leaves of packed codes and of a part that stand in the same order. Where one is cut, or there are not as
    many of both, nothing is known but that each must belong to some codes."""
    if len(codes.leaves) == len(part.leaves):
        return [*zip(codes.leaves, part.leaves, strict=True)]
    return ()


def _describe_stranger(code: Expr, scale: Expr, codes: Codes, part: str, wanted: str) -> str | None:
    """How a leaf of scales is not that of a leaf of codes, in words; None if it is."""
    named, code_name, scale_name = part_beside(codes, part, name_of(code)), name_of(code), name_of(scale)
    if is_part(scale, code, named):
        return None
    if scale.source is code.source:
        return f"is '{code_name}', whose scales are in '{named}', but '{wanted}' beside it is '{scale_name}'"
    return f"is '{code_name}' of one checkpoint, but '{wanted}' beside it is '{scale_name}' of another"


def _describe_crossing(crossing: Crossing, codes: Trail, scales: Trail, wanted: str) -> str:
    """The first element whose scale is not the one beside it, in words."""
    code, scale = codes.leaves[crossing.code[0]], scales.leaves[crossing.found[0]]
    return (
        f"has at {list(crossing.at)} what is at {list(crossing.code[1])} of '{name_of(code)}', whose scale is at "
        f"{list(crossing.own)} of '{name_of(scale)}', but '{wanted}' has for it that at {list(crossing.found[1])}"
    )
