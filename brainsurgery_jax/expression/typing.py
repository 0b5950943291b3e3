"""The shapes and dtypes in an expression of `compute`: its tree becomes a program, or is refused at the part that does
not fit. What `jax.numpy` says of types holds; equal parts of an expression are one node."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import isfinite
from types import EllipsisType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from brainsurgery_jax._lazy import jax, jnp
from brainsurgery_jax.dtypes import BY_NAME, FLOAT32, FLOAT64, Aval, DType, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.expression.floats import stored_dtype, work_dtype
from brainsurgery_jax.expression.functions import CASTS, FUNCTIONS, REDUCTIONS
from brainsurgery_jax.expression.indexing import pick, plain_parts
from brainsurgery_jax.expression.parse import Expression
from brainsurgery_jax.expression.program import At, Computation, Literal, Node, Static, below, excerpt, leaf
from brainsurgery_jax.expression.signatures import Pick
from brainsurgery_jax.numerics.rounding import bounds, largest

if TYPE_CHECKING:
    from typing_extensions import TypeIs

MOST_EXPONENT = 64

_BINARY: Mapping[type, tuple[str, Callable[..., object]]] = {
    ast.Add: ("add", operator.add), ast.Sub: ("subtract", operator.sub), ast.Mult: ("multiply", operator.mul),
    ast.Div: ("divide", operator.truediv), ast.FloorDiv: ("floor_divide", operator.floordiv),
    ast.Mod: ("remainder", operator.mod), ast.Pow: ("power", operator.pow), ast.MatMult: ("matmul", operator.matmul),
    ast.BitAnd: ("bitwise_and", operator.and_), ast.BitOr: ("bitwise_or", operator.or_),
    ast.LShift: ("left_shift", operator.lshift), ast.RShift: ("right_shift", operator.rshift),
    ast.Eq: ("equal", operator.eq), ast.NotEq: ("not_equal", operator.ne), ast.Lt: ("less", operator.lt),
    ast.LtE: ("less_equal", operator.le), ast.Gt: ("greater", operator.gt), ast.GtE: ("greater_equal", operator.ge),
}  # fmt: skip
_UNARY: Mapping[type, tuple[str, Callable[..., object]]] = {
    ast.USub: ("negative", operator.neg), ast.UAdd: ("positive", operator.pos), ast.Invert: ("invert", operator.invert),
}  # fmt: skip


class Typed(NamedTuple):
    """A program, and the text of the expression that each of its nodes stands for."""

    program: Computation
    texts: tuple[str, ...]


@lru_cache(maxsize=4096)
def type_expression(
    expression: Expression, names: tuple[str, ...], avals: tuple[Aval, ...], numbers: tuple[tuple[str, float], ...] = ()
) -> Typed:
    """The program of an expression over tensors of known shapes and dtypes. `numbers`: by what `${...}` asks for.

    Raises Refusal.
    """
    made: list[Typed] = []

    def trace(*xs: jax.Array) -> None:
        made.append(_Typing(expression, names, avals, xs, dict(numbers)).whole())

    with jax.enable_x64(True), freely():
        jax.eval_shape(trace, *(jax.ShapeDtypeStruct(a.shape, to_numpy(a.dtype)) for a in avals))
    return made[0]


@contextmanager
def freely() -> Iterator[None]:
    """Lets shapes broadcast and dtypes promote, whatever the caller of a library has set for code of its own."""
    with ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: the node that makes it, and what JAX traces for it."""

    at: At
    traced: jax.Array


Meaning: TypeAlias = "Value | float | str | EllipsisType | slice | tuple[Meaning, ...] | None"
"""What a part of a tree stands for: a tensor, a number, or what a function or an index takes beside them."""


class _Typing:
    """Walks a tree; the nodes that it finds collect in `nodes`."""

    def __init__(
        self,
        expression: Expression,
        names: Sequence[str],
        avals: Sequence[Aval],
        traced: Sequence[jax.Array],
        numbers: Mapping[str, float],
    ):
        self.expression = expression
        self.nodes: list[Node] = []
        self.texts: list[str] = []
        self.values: dict[Node, Value] = {}
        work = work_dtype([a.dtype for a in avals])
        self.work = work
        self.numbers = numbers
        self.leaves: dict[str, Meaning] = {name: numbers[source] for name, source in expression.numbers}
        for index, (name, aval, x) in enumerate(zip(names, avals, traced, strict=True)):
            value = self._add(leaf(index, aval), x, name)
            if aval.dtype.is_float and aval.dtype != work:
                wide = Node("cast", (value.at,), Aval(aval.shape, work), aval.dtype, (("overflow", None),))
                value = self._add(wide, x.astype(to_numpy(work)), name)
            self.leaves[name] = value
        for name, local in expression.lets:
            self.leaves[name] = self._local(local)

    def _local(self, local: Expression) -> Meaning:
        """What a local name stands for; refusals show its own text."""
        outer, before = self.expression, dict(self.leaves)
        self.expression = local
        self.leaves.update({name: self.numbers[source] for name, source in local.numbers})
        for name, inner in local.lets:
            self.leaves[name] = self._local(inner)
        made = self.of(local.tree)
        self.expression, self.leaves = outer, before
        return made

    def whole(self) -> Typed:
        """The program of the whole tree. Raises Refusal."""
        tree = self.expression.tree
        value = self.of(tree)
        if isinstance(value, tuple):
            raise self._refusal(tree, ValueError(_no_tensor(value)), ())
        if not isinstance(value, Value):
            value = self._emit(tree, "number", jnp.asarray, value)
        assert isinstance(value, Value)
        used = below(self.nodes, [value.at.number])
        return Typed(excerpt(self.nodes, value.at.number, ()), tuple(self.texts[number] for number in used))

    def of(self, node: ast.expr) -> Meaning:
        """What a node of the tree stands for."""
        match node:
            case ast.Name(id=name):
                return self.leaves[name]
            case ast.Constant(value=int() | float() | str() | None | EllipsisType() as value):
                return value
            case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._binary(node, *_BINARY[type(op)], self.of(left), self.of(right))
            case ast.UnaryOp(op=op, operand=operand):
                return self._emit(node, *_UNARY[type(op)], self.of(operand))
            case ast.Attribute(value=inner, attr=name):
                return self._attribute(node, name, self.of(inner))
            case ast.Subscript(value=inner, slice=index):
                parts = index.elts if isinstance(index, ast.Tuple) else [index]
                return self._item(node, self.of(inner), [self._index(part) for part in parts])
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                return self._call(node, name, {str(k.arg): self.of(k.value) for k in keywords}, *map(self.of, args))
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return tuple(map(self.of, parts))
        raise AssertionError(node)

    def _index(self, node: ast.expr) -> Meaning:
        if isinstance(node, ast.Slice):
            return slice(*(None if n is None else self.of(n) for n in (node.lower, node.upper, node.step)))
        return self.of(node)

    # --- parts of the tree

    def _binary(self, node: ast.expr, op: str, fn: Callable[..., object], x: Meaning, y: Meaning) -> Value | float:
        def compute(a: object, b: object) -> object:
            for several in (a, b):
                if isinstance(several, tuple):
                    raise ValueError(_no_tensor(several))
            if op in ("power", "left_shift", "right_shift") and isinstance(b, int | float) and abs(b) > MOST_EXPONENT:
                raise ValueError(f"exponents go up to {MOST_EXPONENT}")
            if op == "matmul":
                return _product(a, b)
            return fn(a, b)

        if op != "matmul":
            self._refuse_unlike(node, x, y)
        return self._emit(node, op, compute, x, y)

    def _refuse_unlike(self, node: ast.expr, x: object, y: object) -> None:
        """Refuse operands whose shapes do not broadcast; where the axes that one lost are why, say how to keep them."""
        if not (isinstance(x, Value) and isinstance(y, Value)) or _broadcasts(x.traced.shape, y.traced.shape):
            return
        bad = self._refusal(node, ValueError(_UNLIKE), [x.traced, y.traced])
        for own, other in ((x, y), (y, x)):
            made = self.nodes[own.at.number]
            if made.op not in REDUCTIONS or made.params["keepdims"]:
                continue
            (source, *_) = made.sources
            kept = [1 if at in made.params["axes"] else n for at, n in enumerate(self.nodes[source].aval.shape)]
            text = self.texts[own.at.number]
            if _broadcasts(kept, other.traced.shape) and text.endswith(")") and "keepdims" not in text:
                bad.hint += f"\nKeep the axes that it goes over: `{text[:-1]}, keepdims=True)`."
                break
        raise bad

    def _attribute(self, node: ast.expr, name: str, x: Meaning) -> Meaning:
        if not isinstance(x, Value):
            raise self._refusal(node, ValueError("is no tensor"), ())
        if name == "shape":
            return tuple(x.traced.shape)
        order = tuple(reversed(range(x.traced.ndim)))
        return self._emit(node, "transpose", lambda a: a.T, x, static=lambda: (("order", order),))

    def _item(self, node: ast.expr, x: Meaning, parts: Sequence[Meaning]) -> Meaning:
        if isinstance(x, tuple):  # a shape
            return self._of_several(node, x, parts)
        if not isinstance(x, Value):
            raise self._refusal(node, ValueError("is no tensor"), ())
        plain = [p.traced if isinstance(p, Value) else p for p in parts]
        return self._emit(node, "item", lambda a: pick(a, plain), x,
                          static=lambda: (("parts", plain_parts(x.traced.shape, plain)),))  # fmt: skip

    def _of_several(self, node: ast.expr, several: tuple[Meaning, ...], parts: Sequence[Meaning]) -> Meaning:
        """A size of a shape, or one of several results."""
        match parts:
            case [int() as place] if -len(several) <= place < len(several):
                return several[place]
            case [slice() as some]:
                return several[some]
        raise self._refusal(node, ValueError(f"takes a whole number below {len(several)} in brackets"), ())

    def _call(self, node: ast.expr, name: str, keywords: Mapping[str, Meaning], *args: Meaning) -> Meaning:
        function = FUNCTIONS[name]

        def call(*xs: object) -> jax.Array:
            for key, value in keywords.items():
                parts = value if isinstance(value, tuple) else (value,)
                if not all(isinstance(p, int | None) for p in parts):
                    raise ValueError(f"{key} must be a whole number, a list of them, true or false")
            if any(a is None or (isinstance(a, tuple) and not function.lists) for a in args):
                raise ValueError("takes tensors and numbers")
            made = function.fn(*_with_traced(args), **keywords)
            return made.astype(to_numpy(self.work)) if function.widest else made

        def static() -> Static:
            limits = (("largest", self._largest(first)),) if function.limits and first is not None else ()
            return (*function.static(keywords, args, rank), *limits)

        if function.elementwise:
            for x, y in combinations(args, 2):
                self._refuse_unlike(node, x, y)
        first = next((a for a in _flat(args) if isinstance(a, Value)), None)
        rank = first.traced.ndim if first is not None else 0
        tensors = [a for a in _flat(args[: function.operands]) if not isinstance(a, str)]
        made = self._emit(node, "cast" if name in CASTS else name, call, *tensors, static=static)
        return made if function.picks is None else self._pick_apart(node, made, function.picks(*map(_shape_of, args)))

    def _largest(self, value: Value) -> float | None:
        """The largest number of the dtype in which a value is stored; None for integers."""
        dtype = stored_dtype(self.nodes, value.at.number, self.work)
        return largest(dtype) if dtype.is_inexact else None

    def _pick_apart(self, node: ast.expr, packed: Value | float, picks: Sequence[Pick]) -> tuple[Meaning, ...]:
        """The results of a function that has several."""
        assert isinstance(packed, Value)
        made = []
        for start, stop, transposed in picks:
            part = self._item(node, packed, [..., start if stop is None else slice(start, stop)])
            assert isinstance(part, Value)
            rank = part.traced.ndim
            order = (*range(rank - 2), rank - 1, rank - 2)
            swap = lambda a: jnp.swapaxes(a, -1, -2)  # noqa: E731
            static: Static = (("order", order),)
            made.append(self._emit(node, "transpose", swap, part, static=lambda s=static: s) if transposed else part)
        return tuple(made)

    # --- nodes

    def _emit(
        self,
        node: ast.expr,
        op: str,
        fn: Callable[..., object],
        *operands: Meaning,
        static: Callable[[], Static] = lambda: (),
    ) -> Value | float:
        """The result of an operation: a tensor, or a number where only numbers went in."""
        made = self._try(node, fn, operands)
        if not _is_array(made):
            if isinstance(made, complex):
                raise self._refusal(node, ValueError("is a complex number"), ())
            assert isinstance(made, int | float)
            if not _is_sane(made):
                raise self.expression.refusal(node, f"'{self.expression.source(node)}' is too large a number")
            return made
        values = _values_of(op, [x.traced if isinstance(x, Value) else x for x in operands])
        if op != "cast" and _is_double(op, values, BY_NAME[made.dtype.name]):
            made = made.astype("float64")
        aval = Aval(tuple(made.shape), BY_NAME[made.dtype.name])
        places = tuple(x.at if isinstance(x, Value) else _literal(x) for x in operands)
        work = _work(op, values, aval.dtype)
        self._refuse_unfit(node, operands, work)
        return self._add(Node(op, places, aval, work, static()), made, self.expression.source(node))

    def _refuse_unfit(self, node: ast.expr, operands: Sequence[Meaning], work: DType) -> None:
        """Refuse a number that the integers beside it cannot be; JAX takes its lowest bits."""
        if work.is_integer:
            low, high = bounds(work)
            for x in operands:
                if type(x) is int and not low <= x <= high:
                    raise self._refusal(node, ValueError(f"{x} does not fit {work} ({low} to {high})"), ())

    def _add(self, node: Node, traced: jax.Array, text: str) -> Value:
        if (known := self.values.get(node)) is None:
            known = self.values[node] = Value(At(len(self.nodes)), traced)
            self.nodes.append(node)
            self.texts.append(text)
        return known

    def _try(self, node: ast.expr, fn: Callable[..., object], operands: Sequence[Meaning]) -> object:
        args = [x.traced if isinstance(x, Value) else x for x in operands]
        try:
            return fn(*args)
        except (TypeError, ValueError, LookupError, ArithmeticError, NotImplementedError) as bad:
            raise self._refusal(node, bad, args) from bad

    def _refusal(self, node: ast.expr, bad: Exception, args: Sequence[object]) -> Refusal:
        shapes = [_show(x) for x in args if _is_array(x)]
        about = f"'{self.expression.source(node)}'" + (f" of {' and '.join(shapes)}" if shapes else "")
        why = str(bad).splitlines()[0].strip().rstrip(".") if str(bad) else "has no value"
        return self.expression.refusal(node, f"{about}: {why[:160]}")


def _literal(x: Meaning) -> Literal:
    assert isinstance(x, int | float), x
    return Literal.of(x)


_EXACT = frozenset({"divide", "mean", "std", "var", "median", "quantile"})
"""What numpy computes of integers of any size in double precision."""


def _values_of(op: str, operands: Sequence[object]) -> Sequence[object]:
    """The operands whose values are computed with: not conditions, nor places in a table."""
    if _keeps_dtype(op):
        return operands[:1]
    return operands[1:] if op == "where" else operands


def _keeps_dtype(op: str) -> bool:
    """Whether operands are computed on in their own dtype, whatever that of the result."""
    return op in ("cast", "number", "item") or (op in FUNCTIONS and FUNCTIONS[op].own)


def _is_double(op: str, values: Sequence[object], made: DType) -> bool:
    """Whether numpy makes a float64 of these operands where JAX makes a float32: of integers of 32 bits and more, which
    float32 does not hold."""
    if made != FLOAT32:
        return False
    dtypes = [BY_NAME[x.dtype.name] for x in values if _is_array(x)]
    whole = op in _EXACT and bool(dtypes) and not any(d.is_inexact for d in dtypes)
    return whole or any(d.is_integer and d.bits >= 32 for d in dtypes)


def _work(op: str, values: Sequence[object], result: DType) -> DType:
    """The dtype that operands are cast to: that of the result, where it tells."""
    if not values or _keeps_dtype(op):
        first = values[0] if values and _is_array(values[0]) else None
        return result if first is None else BY_NAME[first.dtype.name]
    common = BY_NAME[jnp.result_type(*values).name]
    common = FLOAT64 if _is_double(op, values, common) else common
    real_of_complex = common.is_complex and not result.is_complex
    return common if result.is_bool or real_of_complex else result


def _flat(args: Sequence[Meaning]) -> Iterator[Meaning]:
    for a in args:
        yield from a if isinstance(a, tuple) else (a,)


def _no_tensor(several: tuple[object, ...]) -> str:
    """Why a tuple is no operand."""
    if all(isinstance(part, int) for part in several):
        return "a shape is no number; pick one of its sizes, such as x.shape[0]"
    return f"there are {len(several)} results; pick one, such as the first by [0]"


def _shape_of(x: Meaning) -> tuple[int, ...]:
    return tuple(x.traced.shape) if isinstance(x, Value) else ()


def _with_traced(args: Sequence[Meaning]) -> list[object]:
    """Arguments, tensors in lists too, as JAX traces them."""
    return [a.traced if isinstance(a, Value) else tuple(_with_traced(a)) if isinstance(a, tuple) else a for a in args]


def _is_sane(x: float) -> bool:
    """Whether arrays can be computed with a number."""
    return abs(x) < 2**63 if isinstance(x, int) else isfinite(x)


def _is_array(x: object) -> TypeIs[jax.Array]:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _show(x: jax.Array) -> str:
    return str(Aval(tuple(x.shape), BY_NAME[x.dtype.name]))


_UNLIKE = "the shapes do not broadcast: from the last axis on, sizes must be equal or 1"


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    return all(n == m or 1 in (n, m) for n, m in zip(reversed(a), reversed(b), strict=False))


def _product(x: object, y: object) -> jax.Array:
    if not (_is_array(x) and _is_array(y) and x.shape and y.shape):
        raise ValueError("@ takes tensors with at least one axis; numbers are multiplied by *")
    if x.shape[-1] != (inner := y.shape[-2:][0]):
        raise ValueError(f"cannot be multiplied, {x.shape[-1]} against {inner}; .T transposes")
    return jnp.matmul(x, y)
