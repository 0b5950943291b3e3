"""`compute`: an expression over named tensors, for what no op of its own exists."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator

from brainsurgery_jax._lazy import Array, Num, jax, jnp
from brainsurgery_jax.dtypes import BY_NAME, DTYPES, Aval, DType, to_numpy
from brainsurgery_jax.errors import Refusal, did_you_mean
from brainsurgery_jax.op import DTypeName, Operands, SlicedTemplate, control, kernel
from brainsurgery_jax.ops._constants import broadcast
from brainsurgery_jax.ops._evaluate import freely, rounded_to, values_of, work_dtype
from brainsurgery_jax.ops._expressions import Expression, parse_expression, walk_names
from brainsurgery_jax.ops._functions import FUNCTIONS
from brainsurgery_jax.protocol import Bind, Edit, Expr, Item, View
from brainsurgery_jax.select import Ref, kind_of

Formula = Annotated[str, AfterValidator(parse_expression)]

_KEYS = ("from", "to", "expr", "dtype")
_ORDER = ("bool", "uint", "int", "float", "complex")


def _computed(xs: Sequence[Any], expression: Expression, names: Sequence[str], dtype: DType) -> Array:
    with freely():
        return rounded_to(values_of(expression, names, xs).of(expression.tree), dtype)


# --- Kernels ----------------------------------------------------------------------------------------------------------


class _Made(NamedTuple):
    """What an expression gives before it is rounded, and the bytes that it takes on the way."""

    aval: Aval
    workspace: int


@lru_cache(maxsize=4096)
def _abstract(expression: Expression, names: tuple[str, ...], avals: tuple[Aval, ...]) -> _Made:
    """An expression over shapes and dtypes. Raises Refusal at the part that does not fit."""
    held: list[int] = []

    def traced(*xs: Any) -> Any:
        values = values_of(expression, names, xs)
        made = values.of(expression.tree)
        if isinstance(made, tuple):
            raise expression.refused(expression.tree, "the expression is a shape, no tensor")
        held.append(values.workspace)
        return jnp.asarray(made)

    with jax.enable_x64(True), freely():
        out: Any = jax.eval_shape(traced, *(jax.ShapeDtypeStruct(a.shape, to_numpy(a.dtype)) for a in avals))
    return _Made(Aval(tuple(out.shape), BY_NAME[out.dtype.name]), max(held))


def _result(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> tuple[Aval, ...]:
    made = _abstract(params["expression"], params["names"], avals)
    return (Aval(made.aval.shape, params["dtype"]),)


def _workspace(avals: tuple[Aval, ...], params: Mapping[str, Any]) -> int:
    """Bytes, from above: operands widened, and what is made on the way."""
    widened = sum(4 * a.size for a in avals if a.dtype.bits < 32)
    return widened + _abstract(params["expression"], params["names"], avals).workspace


@kernel("compute", result=_result, workspace=_workspace)
def whole(*xs: Num[Array, "..."], expression: Expression, names: tuple[str, ...], dtype: DType) -> Array:
    """An expression over whole tensors of any shapes."""
    return _computed(xs, expression, names, dtype)


@kernel("compute", result=_result, elementwise=True)
def by_element(*xs: Num[Array, "..."], expression: Expression, names: tuple[str, ...], dtype: DType) -> Array:
    """An expression that treats each element by itself, over tensors of one shape and dtype: it runs in blocks."""
    return _computed(xs, expression, names, dtype)


@kernel("compute", result=lambda avals, params: (Aval(avals[0].shape, params["dtype"]),), elementwise=True)
def widened(x: Num[Array, "..."], *, dtype: DType) -> Array:
    """A float in the dtype that is computed in."""
    return x.astype(to_numpy(dtype))


# --- The op -----------------------------------------------------------------------------------------------------------


@control()
def compute(
    view: View, *, from_: Operands, expr: Formula, to: SlicedTemplate | None = None, dtype: DTypeName | None = None
) -> Iterator[Edit]:
    """Compute an expression over named tensors, for each match of the first name's pattern.

    `from` names the tensors of the expression. The first reference is the pattern that is matched, the others are
    names filled from its match (one tensor may serve for all). The result replaces the first tensor, whose shape it
    must have; with `to` it is stored there, whatever was there before. It is rounded once, to `dtype`, or else to the
    dtype of the tensor that it replaces, or of the first. Small floats are computed in float32, float64 stays, and
    shapes broadcast as in numpy. Magnitudes below 1.2e-38 may become zero on the way. What works element by element is
    computed in blocks, the rest on whole tensors.

    In an expression there are numbers, + - * / // % ** @, comparisons, & | ~, slices, .T, .shape, and functions as in
    numpy. By element: abs sqrt exp log sin cos tanh sigmoid sign round floor ceil minimum maximum clip where isfinite
    isnan zeros_like ones_like. With `axis` and `keepdims`: sum mean std var min max norm median quantile. Others:
    softmax matmul dot outer transpose reshape concat stack repeat flip diag tril triu eye arange.
    Example: `compute: {from: {w: '(.*)\\.weight', r: direction}, expr: 'w - outer(r, r @ w)'}`
    """
    assert isinstance(expr, Expression)
    names = tuple(from_)
    _check_names(expr, names)
    for name in names:
        if name not in expr.names:
            message = f"the expression does not use '{name}', which is only looked for"
            view.note("operand-unused", message, "from", "Leave it out of `from` unless it is to be there.")
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
            made = _made_of(view, expr, names, operands, dtype, kept.aval.dtype)
            made = _placed(view, made, first if to is None else to, place, same_shape=to is None)
        except Refusal as bad:
            about = ", ".join(f"{key} '{ref.alias}::{n}'" for (key, ref), n in zip(from_.items(), found, strict=False))
            raise _with_one_dtype(view, first, bad).about(f" ({about})") from bad
        yield Bind((to or first).alias, found[-1] if to else name, made, "rebind")


def _check_names(expression: Expression, names: Sequence[str]) -> None:
    """Refuse names that cannot stand in an expression, or that it uses and nobody gives."""
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
            raise expression.refused(node, message, code="expression-name")


def _old(view: View, to: Ref, name: str) -> Item | None:
    """What is stored under the name of a result already; to be there if only a part of it is written."""
    if to.index is None and not view.has(to.alias, name):
        return None
    return Item(name, view.fetch(to.alias, name, "to"))


def _made_of(
    view: View, expr: Expression, names: tuple[str, ...], operands: Sequence[Expr], dtype: DType | None, kept: DType
) -> Expr:
    """The result, rounded to `dtype`, or to the dtype of what it stands for: in blocks, or made as a whole."""
    used = [at for at, name in enumerate(names) if name in expr.names] or [0]
    names, operands = tuple(names[at] for at in used), [operands[at] for at in used]
    avals = tuple(e.aval for e in operands)
    dtypes = (*(a.dtype for a in avals), dtype or kept)
    if (opaque := next((d for d in dtypes if d.kind == "opaque"), None)) is not None:
        raise Refusal("dtype-opaque", f"{opaque} tensors can be named, copied and moved, but not computed on")
    made = _abstract(expr, names, avals).aval
    if dtype is None and _ORDER.index(made.dtype.kind) > _ORDER.index(kept.kind):
        found = f"the result is {made}, and would be stored as {kept}"
        hint = f"To store it as {made.dtype} say `dtype: {made.dtype}`."
        raise Refusal("dtypes-differ", found, key="expr", hint=hint, kinds=_able(made.dtype, kept))  # fmt: skip
    params = {"expression": expr, "names": names, "dtype": dtype or kept}
    if not expr.elementwise:
        return view.apply(whole, *operands, **params)
    work = work_dtype([a.dtype for a in avals])
    alike = len({work if a.dtype.kind == "float" else a.dtype for a in avals}) == 1
    if not alike:
        return view.apply(whole, *operands, **params)
    if len({a.dtype for a in avals}) > 1:
        operands = [e if e.aval.dtype == work else view.apply(widened, e, dtype=work) for e in operands]
    full = [e if e.aval.shape == made.shape else view.apply(broadcast, e, shape=made.shape) for e in operands]
    return view.apply(by_element, *full, **params)


def _able(dtype: DType, kept: DType) -> tuple[str, ...]:
    """The kinds of tensors that can hold what is of this dtype, which `kept` cannot."""
    kinds = dict.fromkeys(kind_of(d) for d in DTYPES if d.kind in _ORDER[_ORDER.index(dtype.kind) :])
    return tuple(kind for kind in kinds if kind != kind_of(kept))


def _with_one_dtype(view: View, first: Ref, bad: Refusal) -> Refusal:
    """The refusal, whose hint says one dtype for all results, where the pattern matches tensors of several."""
    if bad.code == "dtypes-differ" and bad.kinds and len({item.expr.aval.dtype for item in view.select(first)}) > 1:
        bad.hint = f"{bad.hint} That is meant of all results: match tensors of one dtype alone."
    return bad


def _placed(view: View, made: Expr, ref: Ref, old: Item | None, *, same_shape: bool) -> Expr:
    """What is to be stored: the result, or what was there with the result in a part of it."""
    if old is None:
        return made
    if ref.index is not None:
        return view.update(old.expr, ref, made, "to" if not same_shape else "from")
    if same_shape and made.aval.shape != old.expr.aval.shape:
        hint = "Say where to store it: `to` may also name what is to be replaced."
        found = f"the result is {made.aval}, and cannot take the place of {old.expr.aval}"
        raise Refusal("shapes-differ", found, key="expr", hint=hint)
    return made
