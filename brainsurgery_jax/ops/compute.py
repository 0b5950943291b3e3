"""`compute`: an expression over named tensors, for computations that have no op of their own."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import AfterValidator

from brainsurgery_jax.dtypes import DTYPES, Aval, DType
from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.expression.folds import can_fold
from brainsurgery_jax.expression.functions import FUNCTIONS
from brainsurgery_jax.expression.parse import Expression, parse_expression, walk_names
from brainsurgery_jax.expression.partition import is_written_well, partition
from brainsurgery_jax.expression.program import At, Computation, below, excerpt, leaf, round_result
from brainsurgery_jax.expression.ranges import exact_ranges, wrapping_nodes
from brainsurgery_jax.expression.transposes import reduce_as_it_lies
from brainsurgery_jax.expression.typing import Typed, type_expression, work_dtype
from brainsurgery_jax.numerics.rounding import Overflow, check_overflow
from brainsurgery_jax.op import DTypeName, Operands, SlicedTemplate, control
from brainsurgery_jax.ops._constants import broadcast
from brainsurgery_jax.ops._formulas import by_element, fold_tensor, part, whole, widen_float
from brainsurgery_jax.protocol import Bind, Edit, Item, TensorExpr, View
from brainsurgery_jax.select import Ref, kind_of

Formula = Annotated[str, AfterValidator(parse_expression)]

_KEYS = ("from", "to", "expr", "dtype", "overflow")
_ORDER = ("bool", "uint", "int", "float", "complex")

STREAMED = 64 << 20
"""Bytes of operands and result from which an expression is computed in parts, from file to file."""

NARROW = 16
"""Bits of integers whose arithmetic is looked at for values that leave their range."""


# --- The op -----------------------------------------------------------------------------------------------------------


@control()
def compute(
    view: View,
    *,
    from_: Operands,
    expr: Formula,
    to: SlicedTemplate | None = None,
    dtype: DTypeName | None = None,
    overflow: Overflow | None = None,
) -> Iterator[Edit]:
    """Compute an expression over named tensors, for each match of the first name's pattern.

    `from` names the tensors of the expression. The first reference is the pattern that is matched, the others are
    names filled from its match (one tensor may serve for all). The result replaces the first tensor, whose shape it
    must have; with `to` it is stored there and replaces any tensor of that name. It is rounded once, to `dtype`, or
    else to the dtype of the tensor that it replaces, or of the first; `overflow` is as for `cast`. Small floats are
    computed in float32, float64 stays, and shapes broadcast as in numpy. Every operation is rounded by itself, as in
    numpy; sums are kept in double precision. Large results are computed part by part, along axes that no operation
    mixes; a reduction of a whole large tensor is streamed first.

    An expression may contain numbers, + - * / // % ** @, comparisons, & | ~ << >>, slices, .T, .shape, and functions
    as in numpy. By element: abs sqrt exp log sin cos tanh sigmoid sign round floor ceil minimum maximum clip where
    isfinite isnan zeros_like ones_like, and casts: int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64.
    With `axis` and `keepdims`: sum mean std var min max norm median quantile. Others: softmax matmul dot outer
    transpose reshape concat stack repeat take flip diag tril triu eye arange.
    Example: `compute: {from: {w: '(.*)\\.weight', r: direction}, expr: 'w - outer(r, r @ w)'}`
    """
    assert isinstance(expr, Expression)
    names = tuple(from_)
    _check_names(expr, names)
    for name in names:
        if name not in expr.names:
            message = f"the expression does not use '{name}', which is only looked for"
            view.note("operand-unused", message, "from", "Leave it out of `from` unless it should be listed there.")
    first, *others = from_.values()
    read = dict(zip(names[1:], others, strict=True))
    targets = read if to is None else {**read, "to": to}
    for name, made_of_it in view.rename(first, targets, read=read):
        found = (name, *made_of_it)
        wholes = [view.fetch(ref.alias, n, key) for (key, ref), n in zip(from_.items(), found, strict=False)]
        operands = [view.slice(e, ref, key) for (key, ref), e in zip(from_.items(), wholes, strict=True)]
        place = Item(name, wholes[0]) if to is None else _old(view, to, found[-1])
        kept = operands[0] if place is None else place.expr
        try:
            made = _compute_result(view, expr, names, operands, dtype, overflow, kept.aval.dtype)
            made = _place(view, made, first if to is None else to, place, same_shape=to is None)
        except Refusal as bad:
            about = ", ".join(f"{key} '{ref.alias}::{n}'" for (key, ref), n in zip(from_.items(), found, strict=False))
            raise _with_one_dtype(view, first, bad).about(f" ({about})") from bad
        yield Bind((to or first).alias, found[-1] if to else name, made, "rebind", (first.alias, name))


def _check_names(expression: Expression, names: Sequence[str]) -> None:
    """Refuse names that an expression cannot contain, and names that it uses and `from` lacks."""
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name) or name in FUNCTIONS or name in _KEYS:
            why = "is a function" if name in FUNCTIONS else "is a key of this step" if name in _KEYS else "is no name"
            hint = "Take a name of letters, digits and _, such as `w`."
            raise Refusal("expression-name", f"'{name}' {why}, so no tensor can be called that", key="from", hint=hint)
    for node in walk_names(expression.tree):
        if node.id not in names:
            message = (
                f"'{node.id}' is not among the names under `from` ({', '.join(names)}).{did_you_mean(node.id, names)}"
            )
            raise expression.refusal(node, message, code="expression-name")


def _old(view: View, to: Ref, name: str) -> Item | None:
    """The tensor that the result replaces; it must exist if only a slice of it is written."""
    if to.index is None and not view.has(to.alias, name):
        return None
    return Item(name, view.fetch(to.alias, name, "to"))


def _compute_result(
    view: View,
    expr: Expression,
    names: tuple[str, ...],
    operands: Sequence[TensorExpr],
    dtype: DType | None,
    overflow: str | None,
    kept: DType,
) -> TensorExpr:
    """The result, rounded to `dtype`, or to the dtype of the tensor that it replaces."""
    used = [at for at, name in enumerate(names) if name in expr.names] or [0]
    names, operands = tuple(names[at] for at in used), [operands[at] for at in used]
    avals = tuple(e.aval for e in operands)
    dtypes = (*(a.dtype for a in avals), dtype or kept)
    if (opaque := next((d for d in dtypes if d.is_opaque), None)) is not None:
        raise Refusal("dtype-opaque", f"{opaque} tensors can be named, copied and moved, but not computed on")
    found = type_expression(expr, names, avals)
    made = found.program.aval
    if dtype is None and _ORDER.index(made.dtype.kind) > _ORDER.index(kept.kind):
        why = f"the result is {made}, and would be stored as {kept}"
        hint = f"To store it as {made.dtype} say `dtype: {made.dtype}`."
        raise Refusal("dtypes-differ", why, key="expr", hint=hint, kinds=_able(made.dtype, kept))
    check_overflow(made.dtype, dtype or kept, overflow)
    _note_wrapping(view, found)
    alike = len({work_dtype([a.dtype for a in avals]) if a.dtype.is_float else a.dtype for a in avals}) == 1
    if expr.elementwise and alike:
        return _by_element(view, expr, names, operands, made.shape, dtype or kept, overflow)
    program = reduce_as_it_lies(round_result(found.program, dtype or kept, overflow), STREAMED)
    return _stream(view, program, operands)


def _by_element(
    view: View, expr: Expression, names: tuple[str, ...], operands: Sequence[TensorExpr], shape: tuple[int, ...],
    dtype: DType, overflow: str | None,
) -> TensorExpr:  # fmt: skip
    """A result whose operands are each widened and broadcast to its shape, so that it is computed in flat blocks."""
    work = work_dtype([e.aval.dtype for e in operands])
    if len({e.aval.dtype for e in operands}) > 1:
        operands = [e if e.aval.dtype == work else view.apply(widen_float, e, dtype=work) for e in operands]
    full = [e if e.aval.shape == shape else view.apply(broadcast, e, shape=shape) for e in operands]
    # One program serves all shapes.
    program = type_expression(expr, names, tuple(Aval((1,), e.aval.dtype) for e in operands)).program
    return view.apply(by_element, *full, program=round_result(program, dtype, overflow))


def _stream(view: View, program: Computation, operands: Sequence[TensorExpr]) -> TensorExpr:
    """A result that is computed in parts if it is large and can be cut, or has folds below it; else as a whole."""
    if len(program.nodes) == 1:
        return operands[0]
    if program.aval.nbytes + sum(e.aval.nbytes for e in operands) <= STREAMED:
        return view.apply(whole, *operands, program=program)
    cut = partition(program)
    if cut is None or not is_written_well(cut):
        rest, sources = _replace_folds(view, program, operands)
        return view.apply(whole, *sources, program=rest) if rest is program else _stream(view, rest, sources)
    kept = [_compute_kept(view, _renumber(before), _select_operands(before, operands)) for before in cut.kept]
    sources = [operands[at] if at >= 0 else kept[-1 - at] for at in cut.sources]
    return view.apply(part, *sources, program=cut.program, cuts=cut.cuts)


def _compute_kept(view: View, program: Computation, operands: Sequence[TensorExpr]) -> TensorExpr:
    """A value that all parts of a result need: it is held whole, and computed from folds if it has some."""
    rest, sources = _replace_folds(view, program, operands)
    return sources[0] if len(rest.nodes) == 1 else view.apply(whole, *sources, program=rest)


def _replace_folds(
    view: View, program: Computation, operands: Sequence[TensorExpr]
) -> tuple[Computation, Sequence[TensorExpr]]:
    """A program whose outermost reductions of large tensors are operands, and its operands; itself if it has none."""
    nodes, last = program.nodes, len(program.nodes) - 1
    if not (folds := _outermost_folds(program)):
        return program, operands
    leaves = [n for n in below(nodes, [last], folds) if nodes[n].is_leaf]
    made = [_fold(view, program, number, operands) for number in folds]
    sources = [*made, *(operands[nodes[n].params["index"]] for n in leaves)]
    return excerpt(nodes, last, [*folds, *leaves]), sources


def _outermost_folds(program: Computation) -> list[int]:
    """The nodes that are folds of large tensors and are not in the operand of another."""
    nodes, found = program.nodes, list[int]()
    for number in reversed(range(len(nodes))):
        source = next(iter(nodes[number].sources), None)
        if (
            source is None
            or nodes[source].aval.nbytes <= STREAMED
            or not can_fold(nodes[number], nodes[source].aval.shape)
        ):
            continue
        if number in below(nodes, [len(nodes) - 1], found):
            found.append(number)
    return found


def _fold(view: View, program: Computation, number: int, operands: Sequence[TensorExpr]) -> TensorExpr:
    """A node of a program as a fold over a streamed operand."""
    node = program.nodes[number]
    (source,) = node.sources
    inner = excerpt(program.nodes, source, ())
    x = _stream(view, _renumber(inner), _select_operands(inner, operands))
    own = tuple(At(0) if isinstance(operand, At) else operand for operand in node.operands)
    return view.apply(fold_tensor, x, program=Computation((leaf(0, x.aval), node._replace(operands=own))))


def _select_operands(program: Computation, operands: Sequence[TensorExpr]) -> list[TensorExpr]:
    return [operands[node.params["index"]] for node in program.nodes if node.is_leaf]


def _renumber(program: Computation) -> Computation:
    """A program without unused operands; the others are in the order of its nodes."""
    numbers = iter(range(len(program.nodes)))
    return Computation(tuple(leaf(next(numbers), n.aval) if n.is_leaf else n for n in program.nodes))


def _note_wrapping(view: View, found: Typed) -> None:
    """Note where integers of one or two bytes may overflow."""
    for number in wrapping_nodes(found.program, NARROW):
        node, own = found.program.nodes[number], exact_ranges(found.program)[number]
        first = next(x.number for x in node.operands if isinstance(x, At))
        assert own is not None
        message = (
            f"'{found.texts[number]}' is computed in {node.aval.dtype} and wraps: its values go from {own.low:,} to "
            f"{own.high:,}"
        )
        hint = f"Compute it in a wider dtype: `int32({found.texts[first]})` in place of `{found.texts[first]}`."
        view.note("integer-wraps", message, "expr", hint)


def _able(dtype: DType, kept: DType) -> tuple[str, ...]:
    """The kinds of tensors that can hold values of this dtype, which `kept` cannot."""
    kinds = dict.fromkeys(kind_of(d) for d in DTYPES if d.kind in _ORDER[_ORDER.index(dtype.kind) :])
    return tuple(kind for kind in kinds if kind != kind_of(kept))


def _with_one_dtype(view: View, first: Ref, bad: Refusal) -> Refusal:
    """The refusal, whose hint says one dtype for all results, where the pattern matches tensors of several."""
    if bad.code == "dtypes-differ" and bad.kinds and len({item.expr.aval.dtype for item in view.select(first)}) > 1:
        bad.hint = f"{bad.hint} That is meant of all results: match tensors of one dtype alone."
    return bad


def _place(view: View, made: TensorExpr, ref: Ref, old: Item | None, *, same_shape: bool) -> TensorExpr:
    """The tensor to store: the result, or the old tensor with the result in a part of it."""
    if old is None:
        return made
    if ref.index is not None:
        return view.update(old.expr, ref, made, "to" if not same_shape else "from")
    if same_shape and made.aval.shape != old.expr.aval.shape:
        hint = "Name the destination: `to` may also name a tensor to replace."
        found = f"the result is {made.aval}, and cannot take the place of {old.expr.aval}"
        raise Refusal("shapes-differ", found, key="expr", hint=hint)
    return made
