"""The value of an expression of `compute`, over arrays, traced or abstract."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite
from types import EllipsisType
from typing import Any

from brainsurgery_jax._lazy import Array, jax, jnp
from brainsurgery_jax.dtypes import BY_NAME, FLOAT32, Aval, DType, to_numpy
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.ops._expressions import Expression
from brainsurgery_jax.ops._functions import FUNCTIONS, Function
from brainsurgery_jax.ops._math import nonzero

MOST_EXPONENT = 64

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.MatMult: operator.matmul,
    ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_UNARY: Mapping[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert,
}  # fmt: skip


class Values:
    """Computes an expression, traced or abstract: each name an array. Raises Refusal at the part that does not fit."""

    def __init__(self, expression: Expression, arrays: Mapping[str, Any]):
        self.expression, self.arrays = expression, arrays
        self.own = {id(x) for x in arrays.values()}
        self.kept: list[int] = [0]  # bytes of what contractions and reductions make, and sort
        self.passing: list[int] = [0]  # bytes of what is made element by element: compiled code makes it as it is used

    def of(self, node: ast.expr) -> Any:
        """The value of a node: an array, a number, or what a function takes beside them."""
        match node:
            case ast.Name(id=name):
                return self.arrays[name]
            case ast.Constant(value=value):
                return value
            case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._made(node, _binary, type(op), self.of(left), self.of(right))
            case ast.UnaryOp(op=op, operand=operand):
                return self._made(node, _UNARY[type(op)], self.of(operand))
            case ast.Attribute(value=inner, attr=name):
                return self._made(node, _attribute, name, self.of(inner))
            case ast.Subscript(value=inner, slice=index):
                parts = index.elts if isinstance(index, ast.Tuple) else [index]
                return self._made(node, _item, self.of(inner), [self._index(part) for part in parts])
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                given = {str(k.arg): self.of(k.value) for k in keywords}
                return self._made(node, _called, name, given, *map(self.of, args))
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return tuple(map(self.of, parts))
        raise AssertionError(node)

    def _index(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Slice):
            return slice(*(None if n is None else self.of(n) for n in (node.lower, node.upper, node.step)))
        return self.of(node)

    def _made(self, node: ast.expr, fn: Callable[..., Any], *args: Any) -> Any:
        try:
            made = fn(*args)
        except (TypeError, ValueError, LookupError, ArithmeticError, NotImplementedError) as bad:
            raise self._refused(node, bad, args) from bad
        if _is_array(made):
            self._count(node, made, args)
        elif isinstance(made, int | float) and not _is_sane(made):
            raise self.expression.refused(node, f"'{self.expression.source(node)}' is too large a number")
        return made

    def _count(self, node: ast.expr, made: Any, args: Sequence[Any]) -> None:
        function = FUNCTIONS[node.func.id] if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
        kept = product or (function is not None and not (function.elementwise or function.fused))
        (self.kept if kept else self.passing).append(_nbytes(made))
        if kept:
            copies = _copies(function)
            self.kept.extend(copies * _nbytes(x) for x in args if _is_array(x) and id(x) not in self.own)

    @property
    def workspace(self) -> int:
        """Bytes that it takes at most, from above, besides operands and result."""
        return sum(self.kept) + max(self.passing)

    def _refused(self, node: ast.expr, bad: Exception, args: Sequence[Any]) -> Refusal:
        shapes = [_shown(x) for x in args if _is_array(x)]
        about = f"'{self.expression.source(node)}'" + (f" of {' and '.join(shapes)}" if shapes else "")
        why = str(bad).splitlines()[0].strip().rstrip(".") if str(bad) else "has no value"
        return self.expression.refused(node, f"{about}: {why[:160]}")


def _copies(function: Function | None) -> int:
    """How often an operand that was computed is held: sorting takes a copy, reductions read it as it is made."""
    if function is None:  # a product
        return 1
    return 2 if function.sorts else int("axis" not in function.keywords)


def _is_sane(x: float) -> bool:
    """Whether arrays can be computed with a number."""
    return abs(x) < 2**63 if isinstance(x, int) else isfinite(x)


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _nbytes(x: Any) -> int:
    return x.size * x.dtype.itemsize


def _shown(x: Any) -> str:
    return str(Aval(tuple(x.shape), BY_NAME[x.dtype.name]))


def _binary(op: type, x: Any, y: Any) -> Any:
    if isinstance(x, tuple) or isinstance(y, tuple):
        raise ValueError("a shape is no number; pick one of its sizes, such as x.shape[0]")
    if op is ast.Pow and not _is_array(y) and abs(y) > MOST_EXPONENT:
        raise ValueError(f"exponents go up to {MOST_EXPONENT}")
    if op is ast.MatMult:
        return _product(x, y)
    if _is_array(x) and _is_array(y):
        _broadcastable(x.shape, y.shape)
    made = _BINARY[op](x, y)
    if isinstance(made, complex):
        raise ValueError("is a complex number")
    return made


def _broadcastable(a: Sequence[int], b: Sequence[int]) -> None:
    if any(n != m and 1 not in (n, m) for n, m in zip(reversed(a), reversed(b), strict=False)):
        raise ValueError("the shapes do not broadcast: from the last axis on, sizes must be equal or 1")


def _product(x: Any, y: Any) -> Any:
    if not (_is_array(x) and _is_array(y) and x.shape and y.shape):
        raise ValueError("@ takes tensors with at least one axis; numbers are multiplied by *")
    if x.shape[-1] != (inner := y.shape[-2:][0]):
        raise ValueError(f"cannot be multiplied, {x.shape[-1]} against {inner}; .T transposes")
    return jnp.matmul(x, y)


def _attribute(name: str, x: Any) -> Any:
    if not _is_array(x):
        raise ValueError("is no tensor")
    return x.T if name == "T" else tuple(x.shape)


def _item(x: Any, parts: Sequence[Any]) -> Any:
    if isinstance(x, tuple):  # a shape
        (place,) = parts
        return x[place]
    if not _is_array(x):
        raise ValueError("is no tensor")
    for part in parts:
        bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
        if any(isinstance(b, bool) or not isinstance(b, int | None | EllipsisType) for b in bounds):
            raise ValueError("between brackets stand whole numbers, slices, None and ...; `take` picks by a list")
    _check_bounds(x.shape, parts)
    return x[tuple(parts)]


def _check_bounds(shape: Sequence[int], parts: Sequence[Any]) -> None:
    """Refuse an integer index outside of its axis, which JAX takes for the nearest one inside."""
    taken = [p for p in parts if p is not None]
    if Ellipsis in [p for p in taken if not isinstance(p, slice)]:
        at = next(i for i, p in enumerate(taken) if p is Ellipsis)
        taken[at : at + 1] = [slice(None)] * (len(shape) - len(taken) + 1)
    for axis, (part, size) in enumerate(zip(taken, shape, strict=False)):
        if isinstance(part, int) and not -size <= part < size:
            raise ValueError(f"index {part} is out of range for axis {axis} of size {size}")


def _called(name: str, keywords: Mapping[str, Any], *args: Any) -> Any:
    for key, value in keywords.items():
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(p, int | None) for p in parts):
            raise ValueError(f"{key} must be a whole number, a list of them, true or false")
    function = FUNCTIONS[name]
    if any(a is None or (isinstance(a, tuple) and not function.lists) for a in args):
        raise ValueError("takes tensors and numbers")
    return function.fn(*args, **keywords)


@contextmanager
def freely() -> Iterator[None]:
    """Lets shapes broadcast and dtypes promote, whatever the caller of a library has set for code of its own."""
    with ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


def work_dtype(dtypes: Sequence[DType]) -> DType:
    """The dtype in which floats are computed: float64 if one of them is, else float32."""
    return next((d for d in dtypes if d.kind == "float" and d.bits == 64), FLOAT32)


def values_of(expression: Expression, names: Sequence[str], xs: Sequence[Any]) -> Values:
    """The values of an expression's names, widened to what is computed in."""
    dtypes = [BY_NAME[x.dtype.name] for x in xs]
    work = to_numpy(work_dtype(dtypes))
    floats = [x.astype(work) if d.kind == "float" else x for x, d in zip(xs, dtypes, strict=True)]
    return Values(expression, dict(zip(names, floats, strict=True)))


def rounded_to(value: Any, dtype: DType) -> Array:
    """A result in its dtype; from float64 to smaller floats by way of float32, as everywhere."""
    x = jnp.asarray(value)
    if dtype.kind == "bool":
        return nonzero(x)
    if x.dtype.kind == "c" and dtype.kind != "complex":
        x = x.real
    if x.dtype.name == "float64" and dtype.kind == "float" and dtype.bits < 32:
        x = x.astype(jnp.float32)
    return x.astype(to_numpy(dtype))
