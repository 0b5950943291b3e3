"""Between which whole numbers the integers of an expression lie, whatever the tensors hold: what can wrap, what always
fits. From dtypes and literals alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain
from math import prod
from typing import NamedTuple

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.expression.program import Computation, Literal, Node, Operand
from brainsurgery_jax.numerics.rounding import bounds

INTEGERS = ("int", "uint", "bool")


class Interval(NamedTuple):
    """The least and the largest value."""

    low: int
    high: int

    def within(self, other: Interval) -> bool:
        """Whether all of it lies in another."""
        return other.low <= self.low and self.high <= other.high


def range_of(dtype: DType) -> Interval:
    """What a dtype of whole numbers can hold."""
    return Interval(0, 1) if dtype.is_bool else Interval(*bounds(dtype))


@lru_cache(maxsize=4096)
def exact_ranges(program: Computation) -> tuple[Interval | None, ...]:
    """For each node of whole numbers where its values lie if nothing wraps in it; None for the others."""
    found: list[Interval | None] = []
    for node in program.nodes:
        found.append(_exact(node, program, [_of_operand(x, program, found) for x in node.operands]))
    return tuple(found)


@lru_cache(maxsize=4096)
def find_guarded(program: Computation) -> frozenset[int]:
    """The nodes that some values stop: integers divided by zero, casts to a dtype that does not hold them, places that
    a table does not have."""
    exact = exact_ranges(program)
    return frozenset(n for n, node in enumerate(program.nodes) if _may_stop(node, program, exact))


def wrapping_nodes(program: Computation, bits: int) -> list[int]:
    """The nodes of integers of at most so many bits whose arithmetic can wrap."""
    exact = exact_ranges(program)
    return [
        number
        for number, node in enumerate(program.nodes)
        if node.op in _ARITHMETIC
        and node.aval.dtype.is_integer
        and node.aval.dtype.bits <= bits
        and (own := exact[number]) is not None
        and not own.within(range_of(node.aval.dtype))
    ]


def _of_operand(x: Operand, program: Computation, exact: Sequence[Interval | None]) -> Interval | None:
    """Where the values of an operand lie, having wrapped if they can."""
    if isinstance(x, Literal):
        return Interval(int(x.value), int(x.value)) if isinstance(x.value, int) else None
    dtype = program.nodes[x.number].aval.dtype
    if dtype.kind not in INTEGERS:
        return None
    own, held = exact[x.number], range_of(dtype)
    return own if own is not None and own.within(held) else held


def _exact(node: Node, program: Computation, xs: Sequence[Interval | None]) -> Interval | None:
    if node.aval.dtype.kind not in INTEGERS:
        return None
    held = range_of(node.aval.dtype)
    known = [x for x in xs if x is not None]
    if (rule := _RULES.get(node.op)) is not None and len(known) == len(xs):
        return rule(*known)
    match node.op:
        case "zeros_like" | "eye":
            return Interval(0, 0)
        case "zeros":
            return Interval(0, 0)
        case "ones_like" | "ones":
            return Interval(1, 1)
        case "arange":
            counted = range(*node.params["counts"])
            return Interval(min(counted), max(counted)) if counted else Interval(0, 0)
        case "where":
            return _union_or(held, xs[1:])
        case "take":
            return _union_or(held, xs[:1])
        case "argmax" | "argmin" | "argsort" | "argtopk" | "ranks":
            return Interval(0, max(0, table_size(node, program) - 1))
        case "cast":
            return known[0] if known and known[0].within(held) else held
        case "matmul" | "dot" | "einsum":
            return None if None in xs else _sum(reduce(_multiply, known), _terms(node, program))
        case "sum" | "cumsum" | "trace":
            return None if None in xs else _sum(known[0], MANY)
        case _ if node.op in _SELECTING and len(known) == len(xs):
            return _union(known)
    return held


_SELECTING = frozenset({
    "min", "max", "transpose", "reshape", "concat", "stack", "repeat", "flip", "item", "positive", "round", "floor",
    "ceil", "diag", "tril", "triu", "median", "sort", "topk", "kth_largest", "roll", "nan_to_num",
})  # fmt: skip
_ARITHMETIC = frozenset({
    "add", "subtract", "multiply", "negative", "left_shift", "power", "abs", "matmul", "dot", "outer", "kron", "einsum",
})  # fmt: skip


def _union(ranges: Sequence[Interval]) -> Interval:
    return Interval(min(r.low for r in ranges), max(r.high for r in ranges))


def _union_or(held: Interval, ranges: Sequence[Interval | None]) -> Interval:
    """The union, or all that the dtype holds where one of them is not known."""
    known = [r for r in ranges if r is not None]
    return _union(known) if len(known) == len(ranges) else held


MANY = 1 << 40
"""Terms of a sum of any length."""


def _sum(term: Interval, terms: int) -> Interval:
    """Sums of up to so many terms."""
    return Interval(min(0, term.low * terms), max(0, term.high * terms))


def _terms(node: Node, program: Computation) -> int:
    """How many products are summed for each element of a product of tensors."""
    shapes = [program.nodes[x.number].aval.shape for x in node.operands if not isinstance(x, Literal)]
    if node.op != "einsum":
        return shapes[0][-1] if shapes and shapes[0] else 1
    inputs, _, result = node.params["equation"].partition("->")
    sizes = dict(zip(inputs.replace(",", ""), chain.from_iterable(shapes), strict=True))
    return prod(n for letter, n in sizes.items() if letter not in result)


def _corners(fn: Callable[[int, int], int]) -> Callable[[Interval, Interval], Interval]:
    def of(x: Interval, y: Interval) -> Interval:
        found = [fn(a, b) for a in x for b in y]
        return Interval(min(found), max(found))

    return of


_multiply = _corners(lambda a, b: a * b)


def _quotient(x: Interval, y: Interval) -> Interval:
    """By anything but zero."""
    divisors = [d for d in (y.low, y.high, -1, 1) if d and y.low <= d <= y.high]
    found = [n // d for n in x for d in divisors] or [0]
    return Interval(min(found), max(found))


def _rest(x: Interval, y: Interval) -> Interval:
    if y.low > 0:
        return Interval(0, min(y.high - 1, x.high) if x.low >= 0 else y.high - 1)
    return Interval(min(0, y.low + 1), max(0, y.high - 1))


def _common_bits(x: Interval, y: Interval) -> Interval:
    if x.low >= 0 or y.low >= 0:
        return Interval(0, min(r.high for r in (x, y) if r.low >= 0))
    return Interval(-(1 << max(r.low.bit_length() for r in (x, y))), max(x.high, y.high))


def _all_bits(x: Interval, y: Interval) -> Interval:
    most = (1 << max(x.high, y.high).bit_length()) - 1
    return Interval(0, most) if min(x.low, y.low) >= 0 else Interval(-(1 << max(_bits(x), _bits(y))), most)


def _bits(x: Interval) -> int:
    return max(x.low.bit_length(), x.high.bit_length())


def _power(x: Interval, y: Interval) -> Interval:
    low, high = (min(max(0, n), 64) for n in y)
    exponents = {n for n in (low, low + 1, high - 1, high) if low <= n <= high}  # even and odd ones
    bases = {*x, *(v for v in (-1, 0, 1) if x.low <= v <= x.high)}
    found = [base**n for base in bases for n in exponents]
    return Interval(min(found), max(found))


def _shift_left(x: Interval, y: Interval) -> Interval:
    counts = [min(max(n, 0), 64) for n in y]
    return Interval(min(n << c for n in x for c in counts), max(n << c for n in x for c in counts))


def _shift_right(x: Interval, y: Interval) -> Interval:
    counts = [min(max(n, 0), 64) for n in y]
    return Interval(min(n >> c for n in x for c in counts), max(n >> c for n in x for c in counts))


def _absolute(x: Interval) -> Interval:
    return Interval(0 if x.low <= 0 <= x.high else min(map(abs, x)), max(map(abs, x)))


_YES_OR_NO = dict.fromkeys(
    ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "isfinite", "isnan", "any", "all"),
    lambda *xs: Interval(0, 1),
)
_RULES: Mapping[str, Callable[..., Interval]] = {
    **_YES_OR_NO,
    "add": lambda x, y: Interval(x.low + y.low, x.high + y.high),
    "subtract": lambda x, y: Interval(x.low - y.high, x.high - y.low),
    "multiply": _multiply,
    "outer": _multiply,
    "kron": _multiply,
    "negative": lambda x: Interval(-x.high, -x.low),
    "invert": lambda x: Interval(-x.high - 1, -x.low - 1),
    "floor_divide": _quotient,
    "remainder": _rest,
    "power": _power,
    "bitwise_and": _common_bits,
    "bitwise_or": _all_bits,
    "left_shift": _shift_left,
    "right_shift": _shift_right,
    "minimum": lambda x, y: Interval(min(x.low, y.low), min(x.high, y.high)),
    "maximum": lambda x, y: Interval(max(x.low, y.low), max(x.high, y.high)),
    "clip": lambda x, a, b: Interval(min(max(x.low, a.low), b.low), min(max(x.high, a.high), b.high)),
    "abs": _absolute,
    "sign": lambda x: Interval(-1 if x.low < 0 else 0, 1 if x.high > 0 else 0),
}


def _may_stop(node: Node, program: Computation, exact: Sequence[Interval | None]) -> bool:
    xs = [_of_operand(x, program, exact) for x in node.operands]
    whole = node.aval.dtype.is_integer
    match node.op:
        case "floor_divide" | "remainder":
            return whole and (xs[1] is None or xs[1].low <= 0 <= xs[1].high)
        case "power":
            return whole and (xs[1] is None or xs[1].low < 0)
        case "cast":
            return (
                whole
                and node.params["overflow"] is None
                and (xs[0] is None or not xs[0].within(range_of(node.aval.dtype)))
            )
        case "take":
            size = table_size(node, program)
            return xs[1] is None or not xs[1].within(Interval(-size, size - 1))
    return node.op in _REASONS


_NOT_FINITE = "a matrix of `{}` holds NaN or infinity"
_REASONS = {
    "solve": "a matrix of `solve` is singular or not finite",
    "inv": "a matrix of `inv` is singular or not finite",
    "cholesky": "a matrix of `cholesky` is not positive definite",
    **{name: _NOT_FINITE.format(name) for name in ("pinv", "qr", "svd", "eigh")},
}
"""Why matrices stop operations that always may be stopped."""


def table_size(node: Node, program: Computation) -> int:
    """How many entries a look-up chooses from."""
    table, axis = node.operands[0], node.params["axis"]
    if isinstance(table, Literal):
        return 1
    shape = program.nodes[table.number].aval.shape
    return prod(shape) if axis is None else shape[axis]


def reasons(program: Computation) -> str:
    """What values stop a program, in words."""
    guarded = find_guarded(program)
    found = dict.fromkeys(_reason(program.nodes[number], program) for number in sorted(guarded))
    return "; or ".join(found)


def _reason(node: Node, program: Computation) -> str:
    match node.op:
        case "cast":
            return (
                f"a value does not fit {node.aval.dtype}, or is NaN. `clip`, or `overflow: saturate`, keeps it within"
            )
        case "take":
            return f"an index is out of range for the {table_size(node, program):,} entries of what `take` picks from"
        case "power":
            return "an integer has a negative exponent. Write `float32(x)` in place of the integer"
        case _ if node.op in _REASONS:
            return _REASONS[node.op]
    return "an integer is divided by zero. Write `float32(x)` in place of the integer"
