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
from typing import Any, NamedTuple

from brainsurgery_jax._lazy import jax, jnp
from brainsurgery_jax.dtypes import BY_NAME, FLOAT32, Aval, DType, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.expression.functions import CASTS, FUNCTIONS
from brainsurgery_jax.expression.parse import Expression
from brainsurgery_jax.expression.program import At, Computation, Literal, Node, Static, below, excerpt, leaf
from brainsurgery_jax.numerics.rounding import bounds

MOST_EXPONENT = 64

_BINARY: Mapping[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", operator.add), ast.Sub: ("subtract", operator.sub), ast.Mult: ("multiply", operator.mul),
    ast.Div: ("divide", operator.truediv), ast.FloorDiv: ("floor_divide", operator.floordiv),
    ast.Mod: ("remainder", operator.mod), ast.Pow: ("power", operator.pow), ast.MatMult: ("matmul", operator.matmul),
    ast.BitAnd: ("bitwise_and", operator.and_), ast.BitOr: ("bitwise_or", operator.or_),
    ast.LShift: ("left_shift", operator.lshift), ast.RShift: ("right_shift", operator.rshift),
    ast.Eq: ("equal", operator.eq), ast.NotEq: ("not_equal", operator.ne), ast.Lt: ("less", operator.lt),
    ast.LtE: ("less_equal", operator.le), ast.Gt: ("greater", operator.gt), ast.GtE: ("greater_equal", operator.ge),
}  # fmt: skip
_UNARY: Mapping[type, tuple[str, Callable[[Any], Any]]] = {
    ast.USub: ("negative", operator.neg), ast.UAdd: ("positive", operator.pos), ast.Invert: ("invert", operator.invert),
}  # fmt: skip

REDUCTIONS = frozenset({"sum", "mean", "std", "var", "min", "max", "norm", "median", "quantile"})


class Typed(NamedTuple):
    """A program, and the text of the expression that each of its nodes stands for."""

    program: Computation
    texts: tuple[str, ...]


@lru_cache(maxsize=4096)
def type_expression(expression: Expression, names: tuple[str, ...], avals: tuple[Aval, ...]) -> Typed:
    """The program of an expression over tensors of known shapes and dtypes. Raises Refusal."""
    made: list[Typed] = []

    def trace(*xs: Any) -> None:
        made.append(_Typing(expression, names, avals, xs).whole())

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


def work_dtype(dtypes: Sequence[DType]) -> DType:
    """The dtype in which floats are computed: float64 if one of them is, else float32."""
    return next((d for d in dtypes if d.is_float and d.bits == 64), FLOAT32)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: the node that makes it, and what JAX traces for it."""

    at: At
    traced: Any


class _Typing:
    """Walks a tree; the nodes that it finds collect in `nodes`."""

    def __init__(self, expression: Expression, names: Sequence[str], avals: Sequence[Aval], traced: Sequence[Any]):
        self.expression = expression
        self.nodes: list[Node] = []
        self.texts: list[str] = []
        self.values: dict[Node, Value] = {}
        work = work_dtype([a.dtype for a in avals])
        self.leaves: dict[str, Value] = {}
        for index, (name, aval, x) in enumerate(zip(names, avals, traced, strict=True)):
            value = self._add(leaf(index, aval), x, name)
            if aval.dtype.is_float and aval.dtype != work:
                wide = Node("cast", (value.at,), Aval(aval.shape, work), aval.dtype, (("overflow", None),))
                value = self._add(wide, x.astype(to_numpy(work)), name)
            self.leaves[name] = value

    def whole(self) -> Typed:
        """The program of the whole tree. Raises Refusal."""
        tree = self.expression.tree
        value = self.of(tree)
        if isinstance(value, tuple):
            raise self.expression.refusal(tree, "the expression is a shape, no tensor")
        if not isinstance(value, Value):
            value = self._emit(tree, "number", jnp.asarray, value)
        used = below(self.nodes, [value.at.number])
        return Typed(excerpt(self.nodes, value.at.number, ()), tuple(self.texts[number] for number in used))

    def of(self, node: ast.expr) -> Any:
        """What a node of the tree stands for: a tensor, a number, or what a function takes beside them."""
        match node:
            case ast.Name(id=name):
                return self.leaves[name]
            case ast.Constant(value=value):
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

    def _index(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Slice):
            return slice(*(None if n is None else self.of(n) for n in (node.lower, node.upper, node.step)))
        return self.of(node)

    # --- parts of the tree

    def _binary(self, node: ast.expr, op: str, fn: Callable[..., Any], x: Any, y: Any) -> Any:
        def compute(a: Any, b: Any) -> Any:
            if isinstance(a, tuple) or isinstance(b, tuple):
                raise ValueError("a shape is no number; pick one of its sizes, such as x.shape[0]")
            if op in ("power", "left_shift", "right_shift") and not _is_array(b) and abs(b) > MOST_EXPONENT:
                raise ValueError(f"exponents go up to {MOST_EXPONENT}")
            if op == "matmul":
                return _product(a, b)
            return fn(a, b)

        if op != "matmul":
            self._refuse_unlike(node, x, y)
        return self._emit(node, op, compute, x, y)

    def _refuse_unlike(self, node: ast.expr, x: Any, y: Any) -> None:
        """Refuse operands whose shapes do not broadcast; where the axes that one lost are why, say how to keep them."""
        if not (isinstance(x, Value) and isinstance(y, Value)) or _broadcasts(x.traced.shape, y.traced.shape):
            return
        bad = self._refusal(node, ValueError(_UNLIKE), [x.traced, y.traced])
        for own, other in ((x, y), (y, x)):
            made = self.nodes[own.at.number]
            if made.op not in REDUCTIONS or made.get("keepdims"):
                continue
            (source, *_) = made.sources
            kept = [1 if at in made.get("axes") else n for at, n in enumerate(self.nodes[source].aval.shape)]
            text = self.texts[own.at.number]
            if _broadcasts(kept, other.traced.shape) and text.endswith(")") and "keepdims" not in text:
                bad.hint += f"\nKeep the axes that it goes over: `{text[:-1]}, keepdims=True)`."
                break
        raise bad

    def _attribute(self, node: ast.expr, name: str, x: Any) -> Any:
        if not isinstance(x, Value):
            raise self._refusal(node, ValueError("is no tensor"), ())
        if name == "shape":
            return tuple(x.traced.shape)
        order = tuple(reversed(range(x.traced.ndim)))
        return self._emit(node, "transpose", lambda a: a.T, x, static=lambda made: (("order", order),))

    def _item(self, node: ast.expr, x: Any, parts: Sequence[Any]) -> Any:
        if isinstance(x, tuple):  # a shape
            (place,) = parts
            return self._try(node, lambda a: a[place], [x])
        if not isinstance(x, Value):
            raise self._refusal(node, ValueError("is no tensor"), ())
        plain = [p.traced if isinstance(p, Value) else p for p in parts]
        return self._emit(node, "item", lambda a: _pick(a, plain), x,
                          static=lambda made: (("parts", _plain_parts(x.traced.shape, plain)),))  # fmt: skip

    def _call(self, node: ast.expr, name: str, keywords: Mapping[str, Any], *args: Any) -> Any:
        function = FUNCTIONS[name]

        def call(*xs: Any) -> Any:
            for key, value in keywords.items():
                parts = value if isinstance(value, tuple) else (value,)
                if not all(isinstance(p, int | None) for p in parts):
                    raise ValueError(f"{key} must be a whole number, a list of them, true or false")
            if any(a is None or (isinstance(a, tuple) and not function.lists) for a in args):
                raise ValueError("takes tensors and numbers")
            return function.fn(*_with_traced(args), **keywords)

        if function.elementwise:
            for x, y in combinations(args, 2):
                self._refuse_unlike(node, x, y)
        tensors = list(_flat(args)) if name in ("concat", "stack") else list(args[: _TENSORS.get(name, len(args))])
        static = lambda made: _static_of(name, keywords, args, made)  # noqa: E731
        if name in ("eye", "arange"):
            return self._emit(node, name, call, static=static)
        return self._emit(node, "cast" if name in CASTS else name, call, *tensors, static=static)

    # --- nodes

    def _emit(
        self,
        node: ast.expr,
        op: str,
        fn: Callable[..., Any],
        *operands: Any,
        static: Callable[[Any], Static] | None = None,
    ) -> Any:
        """The result of an operation: a tensor, or a number where only numbers went in."""
        made = self._try(node, fn, operands)
        if not _is_array(made):
            if isinstance(made, complex):
                raise self._refusal(node, ValueError("is a complex number"), ())
            if isinstance(made, int | float) and not _is_sane(made):
                raise self.expression.refusal(node, f"'{self.expression.source(node)}' is too large a number")
            return made
        aval = Aval(tuple(made.shape), BY_NAME[made.dtype.name])
        places = tuple(x.at if isinstance(x, Value) else Literal.of(x) for x in operands)
        work = _work(op, [x.traced if isinstance(x, Value) else x for x in operands], aval.dtype)
        self._refuse_unfit(node, operands, work)
        return self._add(
            Node(op, places, aval, work, static(made) if static else ()), made, self.expression.source(node)
        )

    def _refuse_unfit(self, node: ast.expr, operands: Sequence[Any], work: DType) -> None:
        """Refuse a number that the integers beside it cannot be; JAX takes its lowest bits."""
        if work.is_integer:
            low, high = bounds(work)
            for x in operands:
                if type(x) is int and not low <= x <= high:
                    raise self._refusal(node, ValueError(f"{x} does not fit {work} ({low} to {high})"), ())

    def _add(self, node: Node, traced: Any, text: str) -> Value:
        if (known := self.values.get(node)) is None:
            known = self.values[node] = Value(At(len(self.nodes)), traced)
            self.nodes.append(node)
            self.texts.append(text)
        return known

    def _try(self, node: ast.expr, fn: Callable[..., Any], operands: Sequence[Any]) -> Any:
        args = [x.traced if isinstance(x, Value) else x for x in operands]
        try:
            return fn(*args)
        except (TypeError, ValueError, LookupError, ArithmeticError, NotImplementedError) as bad:
            raise self._refusal(node, bad, args) from bad

    def _refusal(self, node: ast.expr, bad: Exception, args: Sequence[Any]) -> Refusal:
        shapes = [_show(x) for x in args if _is_array(x)]
        about = f"'{self.expression.source(node)}'" + (f" of {' and '.join(shapes)}" if shapes else "")
        why = str(bad).splitlines()[0].strip().rstrip(".") if str(bad) else "has no value"
        return self.expression.refusal(node, f"{about}: {why[:160]}")


def _work(op: str, operands: Sequence[Any], result: DType) -> DType:
    """The dtype that operands are cast to: that of the result, where it tells."""
    if not operands or op in ("cast", "number", "item", "take", *REDUCTIONS):
        first = operands[0] if operands and _is_array(operands[0]) else None
        return result if first is None else BY_NAME[first.dtype.name]
    common = BY_NAME[jnp.result_type(*(operands[1:] if op == "where" else operands)).name]
    real_of_complex = common.is_complex and not result.is_complex
    return common if result.is_bool or real_of_complex else result


_TENSORS = {"transpose": 1, "reshape": 1, "repeat": 1}
"""How many of a function's arguments are operands; the others say how, and are part of the node."""


def _static_of(name: str, keywords: Mapping[str, Any], args: Sequence[Any], made: Any) -> Static:
    """The parameters of a call that are no tensors, spelled in one way."""
    first = next((a for a in _flat(args)), None)
    rank = first.traced.ndim if isinstance(first, Value) else 0
    axis = keywords.get("axis")
    match name:
        case _ if name in REDUCTIONS:
            return ("axes", _axes(axis, rank)), ("keepdims", bool(keywords.get("keepdims", False)))
        case "softmax":
            return (("axes", _axes(keywords.get("axis", -1), rank)),)
        case "transpose":
            order = args[1] if len(args) > 1 else tuple(reversed(range(rank)))
            return (("order", tuple(a % rank for a in order)),)
        case "concat":
            return (("axis", keywords.get("axis", 0) % max(1, rank)),)
        case "stack":
            return (("axis", keywords.get("axis", 0) % (rank + 1)),)
        case "repeat":
            return ("times", args[1]), ("axis", None if axis is None else axis % max(1, rank))
        case "take":
            return (("axis", None if axis is None else axis % max(1, rank)),)
        case "flip":
            return (("axes", _axes(axis, rank)),)
        case "tril" | "triu":
            return (("k", keywords.get("k", 0)),)
        case "eye" | "arange":
            return (("counts", tuple(args)),)
        case _ if name in CASTS:
            return (("overflow", None),)
    return ()


def _axes(axis: Any, rank: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(rank))
    return tuple(sorted(a % max(1, rank) for a in (axis if isinstance(axis, tuple) else (axis,))))


def _flat(args: Sequence[Any]) -> Iterator[Any]:
    for a in args:
        yield from a if isinstance(a, tuple) else (a,)


def _with_traced(args: Sequence[Any]) -> list[Any]:
    """Arguments, tensors in lists too, as JAX traces them."""
    return [a.traced if isinstance(a, Value) else tuple(_with_traced(a)) if isinstance(a, tuple) else a for a in args]


def _is_sane(x: float) -> bool:
    """Whether arrays can be computed with a number."""
    return abs(x) < 2**63 if isinstance(x, int) else isfinite(x)


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _show(x: Any) -> str:
    return str(Aval(tuple(x.shape), BY_NAME[x.dtype.name]))


_UNLIKE = "the shapes do not broadcast: from the last axis on, sizes must be equal or 1"


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    return all(n == m or 1 in (n, m) for n, m in zip(reversed(a), reversed(b), strict=False))


def _product(x: Any, y: Any) -> Any:
    if not (_is_array(x) and _is_array(y) and x.shape and y.shape):
        raise ValueError("@ takes tensors with at least one axis; numbers are multiplied by *")
    if x.shape[-1] != (inner := y.shape[-2:][0]):
        raise ValueError(f"cannot be multiplied, {x.shape[-1]} against {inner}; .T transposes")
    return jnp.matmul(x, y)


def _pick(x: Any, parts: Sequence[Any]) -> Any:
    for part in parts:
        bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
        if any(isinstance(b, bool) or not isinstance(b, int | None | EllipsisType) for b in bounds):
            raise ValueError("between brackets stand whole numbers, slices, None and ...; `take` picks by a list")
    _check_bounds(x.shape, parts)
    return x[tuple(parts)]


def _fill_ellipsis(shape: Sequence[int], parts: Sequence[Any]) -> list[Any]:
    """Parts of an index, one for each axis; those that an ellipsis stands for written out."""
    taken = sum(p is not None and p is not Ellipsis for p in parts)
    rest: list[Any] = [slice(None)] * (len(shape) - taken)
    at = next((i for i, p in enumerate(parts) if p is Ellipsis), len(parts))
    return [*parts[:at], *rest, *parts[at + 1 :]]


def _check_bounds(shape: Sequence[int], parts: Sequence[Any]) -> None:
    """Refuse an integer index outside of its axis, which JAX takes for the nearest one inside."""
    taken = [p for p in _fill_ellipsis(shape, parts) if p is not None]
    for axis, (part, size) in enumerate(zip(taken, shape, strict=False)):
        if isinstance(part, int) and not -size <= part < size:
            raise ValueError(f"index {part} is out of range for axis {axis} of size {size}")


def _plain_parts(shape: Sequence[int], parts: Sequence[Any]) -> tuple[Any, ...]:
    """An index as plain data: None for a new axis, a number, or `(start, stop, step)`, as `range` takes them."""
    sizes = iter(shape)
    made: list[Any] = []
    for part in _fill_ellipsis(shape, parts):
        if part is None:
            made.append(None)
        elif isinstance(part, slice):
            made.append(part.indices(next(sizes)))
        else:
            size = next(sizes)
            made.append(part % size)
    return tuple(made)
