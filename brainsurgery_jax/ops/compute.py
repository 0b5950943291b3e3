"""`compute`: an expression over named tensors, for computations that have no op of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from brainsurgery_jax.dtypes import DTYPES, Aval, DType, opaque_hint, opaque_message
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.expression.floats import work_dtype
from brainsurgery_jax.expression.folds import can_derive, can_fold
from brainsurgery_jax.expression.parse import Expression, parse_expression
from brainsurgery_jax.expression.partition import is_written_well, partition
from brainsurgery_jax.expression.program import At, Computation, below, excerpt, leaf, round_result
from brainsurgery_jax.expression.ranges import exact_ranges, wrapping_nodes
from brainsurgery_jax.expression.scope import SetTerm, bind_names, split_sets, uses_outside
from brainsurgery_jax.expression.transposes import reduce_as_it_lies
from brainsurgery_jax.expression.truncation import find_truncations
from brainsurgery_jax.expression.typing import Typed, type_expression
from brainsurgery_jax.numerics.rounding import Overflow, check_overflow
from brainsurgery_jax.op import DTypeName, Operands, SlicedTemplate, control
from brainsurgery_jax.ops._constants import broadcast
from brainsurgery_jax.ops._formulas import by_element, fold_tensor, part, whole, widen_float
from brainsurgery_jax.ops._matches import NumberFinder, Numbers, check_names, group_rows, join_all
from brainsurgery_jax.protocol import Bind, Edit, Item, Row, TensorExpr, View
from brainsurgery_jax.select import Ref, kind_of, natural_key

Formula = Annotated[str, AfterValidator(parse_expression)]

_TOTAL = parse_expression("sum(x, axis=0)")
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
    let: Annotated[dict[str, Formula], Field(description="local names, and their expressions")] | None = None,
    to: SlicedTemplate | None = None,
    dtype: DTypeName | None = None,
    overflow: Overflow | None = None,
) -> Iterator[Edit]:
    """Compute an expression over named tensors, for each match of the first name's pattern.

    `from` names the tensors of the expression. The first reference is the pattern that is matched, the others are names
    filled from its match (one tensor may serve for all). The result replaces the first tensor, whose shape it must
    have; with `to` it is stored there and replaces any tensor of that name. It is rounded once, to `dtype`, or else to
    the dtype of the tensor that it replaces, or of the first; `overflow` is as for `cast`. Small floats are computed in
    float32, float64 stays, integers of 32 bits and more become float64 where they meet floats, and shapes broadcast as
    in numpy. Every operation is rounded by itself, as in numpy; sums are kept in double precision. Large results are
    computed part by part, along axes that no operation mixes; a reduction of a whole large tensor is streamed first.

    An expression may contain numbers, + - * / // % ** @, comparisons, & | ~ << >>, slices, .T, .shape, and functions
    as in numpy. By element: abs sqrt exp log sin cos tanh sigmoid sign round floor ceil minimum maximum clip where
    isfinite isnan zeros_like ones_like arccos arcsin arctan2 log1p expm1 erf nan_to_num, and casts: int8 int16 int32
    int64 uint8 uint16 uint32 uint64 float32 float64. With `axis` and `keepdims`: sum mean std var min max norm median
    quantile prod any all logsumexp argmax argmin, and `kth_largest(x, 10)`. With `axis`: sort argsort ranks cumsum
    softmax, and `topk(x, 10)`, whose places `argtopk(x, 10)` gives. Others: matmul dot outer kron einsum transpose
    reshape concat stack repeat roll take flip diag tril triu eye zeros ones arange linspace. For sort, argsort, ranks
    and topk NaN is the largest; a reduction of it is NaN, `kth_largest` too. `nan_to_num` gives for infinity the
    largest number of the dtype in which its tensor is stored.
    Linear algebra of small matrices (sides of up to 16,384, or 8,192 for the last four), batched over leading axes, in
    double precision: solve inv cholesky det trace pinv qr svd eigh. `qr(x)`, `svd(x)` and `eigh(x)` have several
    results: `svd(x)[0]` are u, the singular values and v^T are `[1]` and `[2]`. What signs leave open is fixed: the
    largest entry of a singular vector or eigenvector is positive, and so is the diagonal of `qr(x)[1]`.
    `let` gives parts of the expression names of their own, each of which may use those before it. `${i + 1}` is what a
    group of the pattern captured, as a number; `${config.num_hidden_layers}` is one of the config of the first alias.
    `sum_over(x)`, `stack_over(x)` and `concat_over(x)` range over all matches: what is computed of each is added,
    stacked along a new first axis, or joined along the first, in the order of names with their numbers by size (layer 2
    before layer 10). An expression that asks for nothing else has one result for each name that `to` makes, of the
    matches that make it.
    Example: `compute: {from: {w: 'model::.*'}, to: 'model::norm', expr: 'sqrt(sum_over(sum(w ** 2)))'}`
    Example: `compute: {from: {w: '(.*)\\.weight', r: direction}, expr: 'w - outer(r, r @ w)'}`
    """
    assert isinstance(expr, Expression)
    names, lets = tuple(from_), {n: local for n, local in (let or {}).items() if isinstance(local, Expression)}
    check_names(expr, names, lets)
    expression, sets = split_sets(bind_names(expr, lets))
    _note_unused(view, names if to is not None else names[1:], (expression, *(term.each for term in sets)))
    first, *others = from_.values()
    read = dict(zip(names[1:], others, strict=True))
    targets = read if to is None else {**read, "to": to}
    joined = bool(sets) and not uses_outside(expression, from_)
    if joined and to is None:
        found = "the result is one of all matches, and takes no place of theirs"
        raise Refusal("shapes-differ", found, key="expr", hint="Say where to store it: `to: NAME`.")
    job = Job(view, from_, to, dtype, overflow, NumberFinder(view, first))
    rows = view.rename(first, targets, read=read, written=() if joined else None)
    if joined:
        for name, group in group_rows(rows):
            yield job.bind(expression, sets, group[0], group, name)
        return
    over = [job.join(term, rows) for term in sets]
    for row in rows:
        yield job.bind(expression, sets, row, rows, row[1][-1] if to else row[0], over)


def _note_unused(view: View, names: Sequence[str], expressions: Sequence[Expression]) -> None:
    """Say which tensors are only looked for."""
    for name in names:
        if not any(name in expression.names for expression in expressions):
            message = f"the expression does not use '{name}', which is only looked for"
            view.note("operand-unused", message, "from", "Leave it out of `from` unless it should be listed there.")


@dataclass(frozen=True, slots=True)
class Job:
    """What a step computes with: its references, and what is said of the result."""

    view: View
    refs: Mapping[str, Ref]
    to: Ref | None
    dtype: DType | None
    overflow: str | None
    numbers: NumberFinder

    @property
    def first(self) -> Ref:
        return next(iter(self.refs.values()))

    def fetch(self, row: Row) -> dict[str, TensorExpr]:
        """The tensors of a match, by the names that the expression has for them; their parts, where slices say so."""
        name, more = row
        found = zip(self.refs.items(), (name, *more), strict=False)
        return {key: self.view.slice(self.view.fetch(ref.alias, n, key), ref, key) for (key, ref), n in found}

    def about(self, row: Row) -> str:
        """The tensors of a match, in words."""
        found = zip(self.refs.items(), (row[0], *row[1]), strict=False)
        return " ({})".format(", ".join(f"{key} '{ref.alias}::{n}'" for (key, ref), n in found))

    def join(self, term: SetTerm, rows: Sequence[Row]) -> TensorExpr:
        """What a part of the expression that ranges over matches is."""
        each = []
        ordered = rows if term.joined == "sum_over" else sorted(rows, key=lambda row: natural_key(row[0]))
        for row in ordered:
            try:
                numbers = self.numbers.find((term.each,), [row])
                each.append(compute_result(self.view, term.each, self.fetch(row), numbers, None, None, None))
            except Refusal as bad:
                raise bad.about(self.about(row)) from bad
        joined = join_all(self.view, term, each, [row[0] for row in ordered])
        if term.joined != "sum_over":
            return joined
        return _stream(self.view, type_expression(_TOTAL, ("x",), (joined.aval,)).program, [joined])

    def bind(
        self, expression: Expression, sets: Sequence[SetTerm], row: Row, rows: Sequence[Row], name: str,
        over: Sequence[TensorExpr] | None = None,
    ) -> Edit:  # fmt: skip
        """Store the result of a match, or with `over` left out of a group of matches, under a name."""
        view, first, to = self.view, self.first, self.to
        operands = self.fetch(row)
        place = Item(row[0], view.fetch(first.alias, row[0])) if to is None else _old(view, to, name)
        kept = next(iter(operands.values())).aval.dtype if over is not None else None
        kept = place.expr.aval.dtype if place is not None else kept
        terms = dict(zip((t.name for t in sets), over or [self.join(t, rows) for t in sets], strict=True))
        try:
            numbers = self.numbers.find((expression,), [row] if over is not None else rows)
            made = compute_result(view, expression, operands | terms, numbers, self.dtype, self.overflow, kept)
            made = _place(view, made, to or first, place, same_shape=to is None)
        except Refusal as bad:
            raise _with_one_dtype(view, first, bad).about(self.about(row)) from bad
        return Bind((to or first).alias, name, made, "rebind", (first.alias, row[0]))


def _old(view: View, to: Ref, name: str) -> Item | None:
    """The tensor that the result replaces; it must exist if only a slice of it is written."""
    if to.index is None and not view.has(to.alias, name):
        return None
    return Item(name, view.fetch(to.alias, name, "to"))


def compute_result(
    view: View,
    expr: Expression,
    given: Mapping[str, TensorExpr],
    numbers: Numbers,
    dtype: DType | None,
    overflow: str | None,
    kept: DType | None,
) -> TensorExpr:
    """The result, rounded to `dtype`, or to the dtype of what it replaces (None: to none)."""
    names = tuple(name for name in given if name in expr.names) or tuple(given)[:1]
    operands = [given[name] for name in names]
    avals = tuple(e.aval for e in operands)
    dtypes = [d for d in (*(a.dtype for a in avals), dtype or kept) if d is not None]
    if (opaque := next((d for d in dtypes if d.is_opaque), None)) is not None:
        raise Refusal("dtype-opaque", opaque_message(opaque), hint=opaque_hint(opaque))
    found = type_expression(expr, names, avals, numbers)
    made = found.program.aval
    stored = dtype or kept or made.dtype
    if dtype is None and _ORDER.index(made.dtype.kind) > _ORDER.index(stored.kind):
        why = f"the result is {made}, and would be stored as {stored}"
        hint = f"To store it as {made.dtype} say `dtype: {made.dtype}`."
        raise Refusal("dtypes-differ", why, key="expr", hint=hint, kinds=_able(made.dtype, stored))
    check_overflow(made.dtype, stored, overflow)
    _note_wrapping(view, found)
    _note_truncation(view, found, stored, operands)
    alike = len({work_dtype([a.dtype for a in avals]) if a.dtype.is_float else a.dtype for a in avals}) == 1
    if expr.elementwise and alike and any(name in expr.names for name in names):
        return _by_element(view, expr, dict(zip(names, operands, strict=True)), numbers, made.shape, stored, overflow)
    program = reduce_as_it_lies(round_result(found.program, stored, overflow), STREAMED)
    return _stream(view, program, operands)


def _by_element(
    view: View, expr: Expression, given: Mapping[str, TensorExpr], numbers: Numbers, shape: tuple[int, ...],
    dtype: DType, overflow: str | None,
) -> TensorExpr:  # fmt: skip
    """A result of operands that are one by one widened and repeated to its shape: then it is made in flat blocks."""
    operands = list(given.values())
    work = work_dtype([e.aval.dtype for e in operands])
    if len({e.aval.dtype for e in operands}) > 1:
        operands = [e if e.aval.dtype == work else view.apply(widen_float, e, dtype=work) for e in operands]
    full = [e if e.aval.shape == shape else view.apply(broadcast, e, shape=shape) for e in operands]
    # One program for all shapes, since it knows of none.
    program = type_expression(expr, tuple(given), tuple(Aval((1,), e.aval.dtype) for e in operands), numbers).program
    program = round_result(program, dtype, overflow)
    return full[0] if len(program.nodes) == 1 else view.apply(by_element, *full, program=program)


def _stream(view: View, program: Computation, operands: Sequence[TensorExpr]) -> TensorExpr:
    """A result that is computed in parts if it is large and can be cut, or has folds below it; else as a whole."""
    if program.nodes[-1].is_leaf:
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
    return sources[0] if rest.nodes[-1].is_leaf else view.apply(whole, *sources, program=rest)


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
    operand, own = _renumber(inner), _select_operands(inner, operands)
    if not can_derive(node, operand):
        x = _stream(view, operand, own)
        operand, own = Computation((leaf(0, x.aval),)), [x]
    last = At(len(operand.nodes) - 1)
    made = node._replace(operands=tuple(last if isinstance(x, At) else x for x in node.operands))
    return view.apply(fold_tensor, *own, program=Computation((*operand.nodes, made)))


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


def _note_truncation(view: View, found: Typed, stored: DType, operands: Sequence[TensorExpr]) -> None:
    """Note where floats that need not be whole become integers: as for `cast`, what an earlier step made may be."""
    for number, dtype, moved in find_truncations(found.program, stored):
        text = found.texts[number]
        made = found.program.nodes[found.texts.index(text)].aval.dtype  # of small floats, before they are widened
        message = f"'{text}' is {made} and becomes {dtype} by rounding towards zero"
        if not moved:
            view.note("cast-truncates", message, "expr", f"To round to nearest write `round({text})` for `{text}`.")
        elif view.is_original(*operands):
            hint = "Scale weights in the expression, or choose a float dtype."
            view.note("cast-truncates", f"{message}: every value between -1 and 1 becomes 0", "expr", hint)


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
