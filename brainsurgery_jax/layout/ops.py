"""The table of ops for rules: how each one reads its arguments, its action at known sizes, and what it loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import frexp
from typing import NamedTuple

from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.layout.actions import (
    Added,
    Chain,
    Extended,
    Flipped,
    Joined,
    MemberAction,
    Members,
    Multiplied,
    Permuted,
    Reshaped,
    Shape,
    Shapes,
    Shortened,
    check_axis,
)
from brainsurgery_jax.layout.arguments import (
    JoinArgs,
    SizeArgs,
    read_formula,
    read_formulas,
    read_integer,
    read_join,
    read_nothing,
    read_order,
    read_resize,
    read_split,
    wrong,
)
from brainsurgery_jax.layout.expressions import SizeExpression
from brainsurgery_jax.layout.families import LIST, Axis, BoundOp, Names, OpContext, TensorFamily, axis_of, members
from brainsurgery_jax.layout.model import Args


class LayoutOp(NamedTuple):
    """An op: `read` parses its arguments, `bind` returns its action at known sizes, `loses` describes what it does not
    restore; `joins` and `makes` are the indices that it removes or adds."""

    name: str
    example: str
    read: Callable[[object], Args]
    bind: Callable[[Args, OpContext], BoundOp]
    loses: Callable[[Args, Names], str] = lambda args, names: ""
    formulas: Callable[[Args], Sequence[SizeExpression]] = lambda args: ()
    joins: Callable[[Args], str] = lambda args: ""
    makes: Callable[[Args], str] = lambda args: ""


# --- Ops on every member ----------------------------------------------------------------------------------------------


def _bind_alike(step: Callable[[Args, Shape, Names], Sequence[MemberAction]]) -> Callable[[Args, OpContext], BoundOp]:
    """The `bind` of an op that treats each member by itself."""
    return lambda args, b: members(b.family, [step(args, shape, b.names) for shape in b.family.shapes])


def _transpose(args: None, shape: Shape, names: Names) -> Sequence[MemberAction]:
    if len(shape) < 2:
        raise Refusal("layout-shape", f"{list(shape)} does not have two axes to swap")
    *rest, a, b = range(len(shape))
    return [Permuted((*rest, b, a))]


def _permute(order: tuple[int, ...], shape: Shape, names: Names) -> Sequence[MemberAction]:
    return [Permuted(order)]


def _reshape(sizes: tuple[SizeExpression, ...], shape: Shape, names: Names) -> Sequence[MemberAction]:
    return [Reshaped(shape, tuple(s.integer(names) for s in sizes))]


def _interleave(axis: int, shape: Shape, names: Names) -> Sequence[MemberAction]:
    at = axis_of(axis, shape)
    if shape[at] % 2:
        raise Refusal("layout-shape", f"axis {axis} of {list(shape)} has an odd length")
    halves = (*shape[:at], 2, shape[at] // 2, *shape[at + 1 :])
    order = (*range(at), at + 1, at, *range(at + 2, len(halves)))
    pairs = tuple(halves[a] for a in order)
    return [Reshaped(shape, halves), Permuted(order), Reshaped(pairs, shape)]


def _pad(args: SizeArgs, shape: Shape, names: Names) -> Sequence[MemberAction]:
    at = axis_of(args.axis, shape)
    return [Extended(at, shape[at], args.to.integer(names))]


def _shorten(args: SizeArgs, shape: Shape, names: Names) -> Sequence[MemberAction]:
    at = axis_of(args.axis, shape)
    return [Shortened(at, shape[at], args.to.integer(names))]


def _number(formula: SizeExpression, names: Names) -> float:
    value = formula.value(names)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal("layout-value", f"'{formula.text}' must be a number, but is {value!r}")
    return float(value)


def _factor(formula: SizeExpression, names: Names) -> float:
    if not (value := _number(formula, names)):
        raise Refusal("layout-value", f"'{formula.text}' is 0, which cannot be undone")
    return value


def _multiply(formula: SizeExpression, shape: Shape, names: Names) -> Sequence[MemberAction]:
    by = _factor(formula, names)
    return [Multiplied(by, 1 / by)]


def _divide(formula: SizeExpression, shape: Shape, names: Names) -> Sequence[MemberAction]:
    by = _factor(formula, names)
    return [Multiplied(1 / by, by)]  # as compiled code divides by a number, the libraries' own conversions included


def _add(formula: SizeExpression, shape: Shape, names: Names) -> Sequence[MemberAction]:
    return [Added(_number(formula, names))]


def _confirm(sizes: tuple[SizeExpression, ...], shape: Shape, names: Names) -> Sequence[MemberAction]:
    declared = tuple(s.integer(names) for s in sizes)
    if declared != shape:
        raise Refusal("layout-shape", f"the shape here is {list(shape)}, not {list(declared)}")
    return []


# --- Ops that join and cut --------------------------------------------------------------------------------------------


def _concatenate(args: JoinArgs, b: OpContext) -> BoundOp:
    groups = b.family.groups(args.over)
    shapes = b.family.shapes
    axis = axis_of(args.axis, shapes[0])
    sizes = tuple(tuple(shapes[at][axis] for at in group) for group in groups)
    action = Joined(groups, sizes, axis)
    return BoundOp(action, TensorFamily(b.family.without(args.over), tuple(action.forward(shapes, Shapes()))))


def _stack(args: JoinArgs, b: OpContext) -> BoundOp:
    rank = len(b.family.shapes[0])
    at = args.axis + rank + 1 if args.axis < 0 else args.axis
    check_axis(at, rank + 1, b.family.shapes[0])
    single = members(b.family, [[Reshaped(s, (*s[:at], 1, *s[at:]))] for s in b.family.shapes])
    joined = _concatenate(JoinArgs(at, args.over), b._replace(family=single.family))
    return BoundOp(Chain((single.action, joined.action)), joined.family)


def _cut(args: JoinArgs, b: OpContext) -> BoundOp:
    count = _count(args, b)
    shapes = []
    for shape in b.family.shapes:
        axis = axis_of(args.axis, shape)
        sizes = [s.integer(b.names) for s in args.sizes] or _equal(shape[axis], count, axis, shape)
        if sum(sizes) != shape[axis] or len(sizes) != count:
            found = f"the sizes {sizes} do not add up to axis {axis} of {list(shape)}, in {count} parts"
            raise Refusal("layout-shape", found)
        shapes += [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
    family = TensorFamily((*b.family.axes, Axis(args.over, count)), tuple(shapes))
    return BoundOp(Flipped(_concatenate(args, b._replace(family=family)).action), family)


def _equal(size: int, count: int, axis: int, shape: Shape) -> list[int]:
    if size % count:
        raise Refusal("layout-shape", f"axis {axis} of {list(shape)} cannot be cut into {count} equal parts")
    return [size // count] * count


def _count(args: JoinArgs, b: OpContext) -> int:
    if args.over not in b.sizes:
        known = ", ".join(b.sizes) or "nothing"
        raise Refusal("layout-family", f"no index on the other side to cut for, over {args.over}",
                      hint=f"The names under `to` differ in: {known}.")  # fmt: skip
    return b.sizes[args.over]


def _unstack(args: JoinArgs, b: OpContext) -> BoundOp:
    cut = _cut(args, b)
    shapes = cut.family.shapes
    at = axis_of(args.axis, shapes[0])
    if any(s[at] != 1 for s in shapes):
        raise Refusal(
            "layout-shape", f"axis {args.axis} of {list(b.family.shapes[0])} does not have {_count(args, b)} entries"
        )
    single = members(cut.family, [[Reshaped(s, (*s[:at], *s[at + 1 :]))] for s in shapes])
    return BoundOp(Chain((cut.action, single.action)), single.family)


# --- Ops for each member ----------------------------------------------------------------------------------------------


class OpCall(NamedTuple):
    """An op of the table with its arguments."""

    op: LayoutOp
    args: Args


def read_op(value: object) -> OpCall:
    """An op as a rule writes it: its name, or a mapping from its name to its arguments."""
    if isinstance(value, str):
        name, args = value, None
    elif isinstance(value, dict) and len(value) == 1:
        ((name, args),) = value.items()
    else:
        raise wrong("an op, such as `transpose` or `{reshape: [D, N, H]}`", value)
    if (op := OPS.get(name)) is None:
        raise Refusal(
            "layout-op-unknown", f"unknown op '{name}'.{did_you_mean(name, OPS)}", hint=f"Ops: {', '.join(OPS)}."
        )
    try:
        return OpCall(op, op.read(args))
    except Refusal as bad:
        raise Refusal(bad.code, f"{name}: {bad.message}", hint=bad.hint or f"Write `{op.example}`.") from None


def _read_each(value: object) -> tuple[tuple[OpCall, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(v, list) for v in value):
        raise wrong("a list of lists of ops, one for each name in the list", value)
    return tuple(tuple(map(read_op, ops)) for ops in value)


def _bind_each(args: tuple[tuple[OpCall, ...], ...], b: OpContext) -> BoundOp:
    groups = b.family.groups(LIST)
    if len(groups[0]) != len(args):
        raise Refusal("layout-family", f"each: {len(args)} lists of ops for {len(groups[0])} names")
    chosen = {at: uses for group in groups for at, uses in zip(group, args, strict=True)}
    steps: list[Sequence[MemberAction]] = []
    for at, shape in enumerate(b.family.shapes):
        own: list[MemberAction] = []
        for use in chosen[at]:
            bound = use.op.bind(use.args, b._replace(family=TensorFamily((), (shape,))))
            assert isinstance(bound.action, Members)
            own += bound.action.steps[0]
            (shape,) = bound.family.shapes
        steps.append(own)
    return members(b.family, steps)


def _each_formulas(args: tuple[tuple[OpCall, ...], ...]) -> Sequence[SizeExpression]:
    return [f for uses in args for use in uses for f in use.op.formulas(use.args)]


def _each_loses(args: tuple[tuple[OpCall, ...], ...], names: Names) -> str:
    return "; ".join(dict.fromkeys(loss for uses in args for u in uses if (loss := u.op.loses(u.args, names))))


# --- What is lost -----------------------------------------------------------------------------------------------------


def _scale_loses(formula: SizeExpression, names: Names) -> str:
    exact = frexp(abs(_factor(formula, names)))[0] == 0.5
    return "" if exact else f"scales by {formula.text}, which rounds"


def _add_loses(formula: SizeExpression, names: Names) -> str:
    return f"adds {formula.text}, which rounds" if _number(formula, names) else ""


def _pad_loses(args: SizeArgs, names: Names) -> str:
    return f"pads axis {args.axis} to {args.to.text}; the inverse cuts off what lies beyond"


def _cut_loses(args: SizeArgs, names: Names) -> str:
    return f"cuts axis {args.axis} to {args.to.text}; the inverse fills what lies beyond with zeros"


# --- The table --------------------------------------------------------------------------------------------------------


def _size_formulas(args: SizeArgs) -> Sequence[SizeExpression]:
    return (args.to,)


OPS: Mapping[str, LayoutOp] = {
    op.name: op
    for op in (
        LayoutOp("transpose", "transpose", read_nothing, _bind_alike(_transpose)),
        LayoutOp("permute", "permute: [0, 2, 1]", read_order, _bind_alike(_permute)),
        LayoutOp("reshape", "reshape: [D, N, H]", read_formulas, _bind_alike(_reshape), formulas=lambda args: args),
        LayoutOp("is", "is: [D, N, H]", read_formulas, _bind_alike(_confirm), formulas=lambda args: args),
        LayoutOp("interleave", "interleave: 2", read_integer, _bind_alike(_interleave)),
        LayoutOp("stack", "stack: {over: i, axis: 1}", read_join, _stack, joins=lambda args: args.over),
        LayoutOp("concat", "concat: {axis: 0}", read_join, _concatenate, joins=lambda args: args.over),
        LayoutOp("unstack", "unstack: {axis: 0}", read_join, _unstack, makes=lambda args: args.over),
        LayoutOp("split", "split: {axis: 0, sizes: [D, D, D]}", read_split, _cut, formulas=lambda args: args.sizes,
                 makes=lambda args: args.over),
        LayoutOp("each", "each: [[transpose], [{reshape: [D]}]]", _read_each, _bind_each, _each_loses, _each_formulas),
        LayoutOp("multiply", "multiply: 2", read_formula, _bind_alike(_multiply), _scale_loses, lambda args: (args,)),
        LayoutOp("divide", "divide: sqrt(H)", read_formula, _bind_alike(_divide), _scale_loses, lambda args: (args,)),
        LayoutOp("add", "add: 1", read_formula, _bind_alike(_add), _add_loses, lambda args: (args,)),
        LayoutOp("pad", "pad: {axis: 0, to: V}", read_resize, _bind_alike(_pad), _pad_loses, _size_formulas),
        LayoutOp("cut", "cut: {axis: 0, to: V}", read_resize, _bind_alike(_shorten), _cut_loses, _size_formulas),
    )
}  # fmt: skip
